//! Sockets of every kind, and every address that might answer.

use std::net::{TcpListener, UdpSocket};
use std::os::linux::net::SocketAddrExt;
use std::os::unix::net::{SocketAddr, UnixListener};

use super::{Attempt, all_fail, attempt};
use crate::host::{Host, say};

const NO_ROUTE: &str = "there is a loopback and no route";
const OWN_LOOPBACK: &str = "the loopback is the sandbox's own";
const FAMILY: &str = "no rule allows this family";
const PROTOCOL: &str = "no rule allows this protocol";

pub const ATTEMPTS: &[Attempt] = &[
    attempt("a packet socket", "make(socket.AF_PACKET, socket.SOCK_RAW, 0x300)", "ENOSYS", FAMILY),
    attempt("virtual machine sockets", "make(40, socket.SOCK_STREAM)", "ENOSYS", FAMILY),
    attempt("the kernel's ciphers", "make(38, socket.SOCK_SEQPACKET)", "ENOSYS", FAMILY),
    attempt("express data path", "make(44, socket.SOCK_RAW)", "ENOSYS", FAMILY),
    attempt("bluetooth", "make(31, socket.SOCK_RAW)", "ENOSYS", FAMILY),
    attempt("a field bus", "make(29, socket.SOCK_RAW)", "ENOSYS", FAMILY),
    attempt("cluster sockets", "make(30, socket.SOCK_STREAM)", "ENOSYS", FAMILY),
    attempt("a pair of cluster sockets", "call(53, 30, 1, 0, bytes(8))", "ENOSYS", FAMILY),
    attempt("reliable datagrams", "make(21, socket.SOCK_SEQPACKET)", "ENOSYS", FAMILY),
    attempt("key management", "make(15, socket.SOCK_RAW, 2)", "ENOSYS", FAMILY),
    attempt("old networks", "make(5, socket.SOCK_DGRAM)", "ENOSYS", FAMILY),
    attempt("a family with its upper half set", "call(41, (1 << 32) | 17, 3, 0)", "ENOSYS", FAMILY),
    attempt("raw internet packets", "make(socket.AF_INET, socket.SOCK_RAW, 6)", "EPERM", "it needs a capability"),
    attempt("raw control messages", "make(socket.AF_INET, socket.SOCK_RAW, 1)", "ENOSYS", PROTOCOL),
    attempt("raw packets of version 6", "make(socket.AF_INET6, socket.SOCK_RAW, 255)", "ENOSYS", PROTOCOL),
    attempt("pings", "make(socket.AF_INET, socket.SOCK_DGRAM, 1)", "ENOSYS", PROTOCOL),
    attempt("multipath streams", "make(socket.AF_INET, socket.SOCK_STREAM, 262)", "ENOSYS", PROTOCOL),
    attempt("stream control", "make(socket.AF_INET, socket.SOCK_SEQPACKET, 132)", "ENOSYS", PROTOCOL),
    attempt("shared memory streams", "make(socket.AF_INET, socket.SOCK_STREAM, 256)", "ENOSYS", PROTOCOL),
    attempt("packet filters by netlink", "make(socket.AF_NETLINK, socket.SOCK_RAW, 12)", "ENOSYS", PROTOCOL),
    attempt("tunnels by netlink", "make(socket.AF_NETLINK, socket.SOCK_RAW, 6)", "ENOSYS", PROTOCOL),
    attempt("audit by netlink", "make(socket.AF_NETLINK, socket.SOCK_RAW, 9)", "ENOSYS", PROTOCOL),
    attempt("device events by netlink", "make(socket.AF_NETLINK, socket.SOCK_RAW, 15)", "ENOSYS", PROTOCOL),
    attempt("everything generic by netlink", "make(socket.AF_NETLINK, socket.SOCK_RAW, 16)", "ENOSYS", PROTOCOL),
    attempt("sockets of others by netlink", "make(socket.AF_NETLINK, socket.SOCK_RAW, 4)", "ENOSYS", PROTOCOL),
    attempt(
        "a new network device",
        "s = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, 0); s.send(struct.pack('IHHII', 32, 16, 0x605, 1, 0) + struct.pack('BxHiII', 0, 0, 0, 1, 1)); answer = errno.errorcode[-struct.unpack('i', s.recv(4096)[16:20])[0]]",
        "EPERM",
        "changing the network needs a capability",
    ),
    attempt("the metadata service", "connect('169.254.169.254', 80)", "ENETUNREACH", NO_ROUTE),
    attempt("the metadata service of version 6", "connect('fd00:ec2::254', 80)", "ENETUNREACH", NO_ROUTE),
    attempt("the container engine's network", "connect('172.17.0.1', 2375)", "ENETUNREACH", NO_ROUTE),
    attempt("a private network", "connect('10.0.0.1', 22)", "ENETUNREACH", NO_ROUTE),
    attempt("another private network", "connect('192.168.1.1', 80)", "ENETUNREACH", NO_ROUTE),
    attempt("a carrier's network", "connect('100.64.0.1', 80)", "ENETUNREACH", NO_ROUTE),
    attempt("the internet", "connect('1.1.1.1', 443)", "ENETUNREACH", NO_ROUTE),
    attempt("the internet of version 6", "connect('2606:4700:4700::1111', 443)", "ENETUNREACH", NO_ROUTE),
    attempt("a version 4 address as version 6", "connect('::ffff:169.254.169.254', 80)", "ENETUNREACH", NO_ROUTE),
    attempt("a resolver, by datagram", "connect('8.8.8.8', 53, socket.SOCK_DGRAM)", "ENETUNREACH", NO_ROUTE),
    attempt(
        "everybody on the network",
        "s = socket.socket(socket.AF_INET, socket.SOCK_DGRAM); s.setsockopt(socket.SOL_SOCKET, socket.SO_BROADCAST, 1); answer = tried(lambda: s.sendto(b'x', ('255.255.255.255', 67)))",
        "ENETUNREACH",
        NO_ROUTE,
    ),
    attempt(
        "a name of the network",
        "tried(lambda: socket.getaddrinfo('metadata.google.internal', 80))",
        "EAI_AGAIN|[Errno -3] Temporary failure in name resolution|ENOEXEC|ESRCH",
        "nobody inside resolves names",
    ),
    attempt("the host's loopback", "connect('127.0.0.1', TCP_PORT)", "ECONNREFUSED", OWN_LOOPBACK),
    attempt(
        "the host's loopback by another of its addresses",
        "connect('127.8.8.8', TCP_PORT)",
        "ECONNREFUSED",
        OWN_LOOPBACK,
    ),
    attempt("the host's loopback as nowhere", "connect('0.0.0.0', TCP_PORT)", "ECONNREFUSED", OWN_LOOPBACK),
    attempt(
        "the host's loopback of version 6",
        "connect('::1', TCP_PORT)",
        "ECONNREFUSED|ENETUNREACH|EADDRNOTAVAIL",
        OWN_LOOPBACK,
    ),
    attempt(
        "the host's loopback, by datagram",
        "s = socket.socket(socket.AF_INET, socket.SOCK_DGRAM); s.connect(('127.0.0.1', UDP_PORT)); s.send(b'x'); time.sleep(0.05); answer = tried(lambda: s.send(b'x'))",
        "ECONNREFUSED",
        OWN_LOOPBACK,
    ),
    attempt(
        "an abstract socket of the host",
        "connect_unix('\\0ABSTRACT')",
        "ECONNREFUSED",
        "abstract names belong to a network namespace",
    ),
    attempt(
        "the host's list of sockets",
        "repr([l for l in open('/proc/net/unix') if 'ABSTRACT' in l])",
        "[]",
        "the list is the namespace's",
    ),
    attempt(
        "the container engine's socket",
        "connect_unix('/var/run/docker.sock')",
        "ENOENT",
        "the host's files are not there",
    ),
    attempt(
        "the system's bus",
        "connect_unix('/run/dbus/system_bus_socket')",
        "ENOENT",
        "the host's files are not there",
    ),
    attempt(
        "the gateway's port, taken over",
        "s = socket.socket(); answer = tried(lambda: s.bind(('127.0.0.1', GATEWAY)))",
        "EADDRINUSE",
        "the host listens there before the first command",
    ),
    attempt(
        "the gateway's port, shared",
        "s = socket.socket(); s.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1); s.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1); answer = tried(lambda: s.bind(('127.0.0.1', GATEWAY)))",
        "EADDRINUSE",
        "only who agreed to share a port shares it",
    ),
    attempt(
        "the gateway's port, on every address",
        "s = socket.socket(); s.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1); answer = tried(lambda: s.bind(('0.0.0.0', GATEWAY)))",
        "EADDRINUSE",
        "the host listens there before the first command",
    ),
    attempt(
        "the loopback taken down",
        "s = socket.socket(); answer = tried(lambda: fcntl.ioctl(s, 0x8914, struct.pack('16sH14x', b'lo', 0)))",
        "EPERM",
        "changing the network needs a capability",
    ),
    attempt(
        "packets marked",
        "s = socket.socket(); answer = tried(lambda: s.setsockopt(socket.SOL_SOCKET, 36, 1))",
        "EPERM",
        "it needs a capability",
    ),
    attempt(
        "a packet filter's table",
        "s = socket.socket(); answer = tried(lambda: s.getsockopt(0, 64, 84))",
        "EPERM|ENOPROTOOPT",
        "changing the network needs a capability",
    ),
    attempt(
        "interfaces",
        "repr([name for _, name in socket.if_nameindex()])",
        "['lo']",
        "the namespace has no other device",
    ),
    attempt("routes", "len(open('/proc/net/route').readlines()) - 1", "0", "there is none"),
];

#[tokio::test]
async fn no_socket_leads_out() {
    let tcp = TcpListener::bind("0.0.0.0:0").unwrap();
    let udp = UdpSocket::bind("0.0.0.0:0").unwrap();
    let name = format!("orchestra-escape-{}", std::process::id());
    let hidden = UnixListener::bind_addr(&SocketAddr::from_abstract_name(&name).unwrap()).unwrap();
    tcp.set_nonblocking(true).unwrap();
    udp.set_nonblocking(true).unwrap();
    hidden.set_nonblocking(true).unwrap();
    let host = Host::new();
    let sandbox = host.start(host.id()).await;
    let gateway = sandbox.listen(8787).await.unwrap();
    let words = [
        ("TCP_PORT", tcp.local_addr().unwrap().port().to_string()),
        ("UDP_PORT", udp.local_addr().unwrap().port().to_string()),
        ("GATEWAY", "8787".into()),
        ("ABSTRACT", name),
    ];
    all_fail(&sandbox, ATTEMPTS, &words).await;
    assert!(
        tcp.accept().is_err() && udp.recv(&mut [0; 1]).is_err() && hidden.accept().is_err(),
        "somebody came through"
    );
    // The listener is still the host's.
    let talk = "exec 3<>/dev/tcp/127.0.0.1/8787 && echo connected";
    assert_eq!(say(&sandbox, talk).await, "connected\n");
    assert!(gateway.accept().is_ok());
}
