//! The built-in agent: what the model is told, what it may ask for, and how its tool calls become commands.
