//! The REST interface, asked over a socket.
