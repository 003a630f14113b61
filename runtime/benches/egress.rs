//! Bytes a second through the sandboxes' proxy and without it, over loopback, interleaved in one run.
//!
//! `cargo bench -p orchestra-runtime --bench egress`. The figure that is promised is the share of a direct connection, at
//! least 60 %: the absolute numbers are those of the machine.
#![allow(clippy::unwrap_used, clippy::print_stdout)]

use std::io::{Read, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::sync::Arc;
use std::time::{Duration, Instant};

use async_trait::async_trait;
use orchestra_runtime::egress::{Batch, Limits, Lost, Policy, Resolve, Sink, expand, read_list, serve_on};

/// Bytes of one transfer.
const SIZE: u64 = 1 << 30;
/// Transfers of each kind.
const ROUNDS: usize = 9;
/// What both ends read and write at once.
const BUFFER: usize = 256 * 1024;
/// What is asked for over the short connections.
const SHORT: usize = 200;

struct Here;

#[async_trait]
impl Resolve for Here {
    async fn resolve(&self, _: &str) -> std::io::Result<Vec<std::net::IpAddr>> {
        Ok(vec![Ipv4Addr::LOCALHOST.into()])
    }
}

struct Nobody;

#[async_trait]
impl Sink for Nobody {
    async fn take_down(&self, _: Batch) -> Result<(), Lost> {
        Ok(())
    }
}

/// A Client Hello that names `server.example`.
fn hello() -> Vec<u8> {
    let name = b"server.example";
    let size = |bytes: usize| u16::try_from(bytes).unwrap().to_be_bytes();
    let list = [&[0][..], &size(name.len()), name].concat();
    let content = [&size(list.len())[..], &list].concat();
    let extension = [&[0, 0][..], &size(content.len()), &content].concat();
    let body = [&[3, 3][..], &[7; 32], &[0, 0, 2, 0x13, 1, 1, 0], &size(extension.len()), &extension].concat();
    let message = [&[1, 0][..], &size(body.len()), &body].concat();
    [&[22, 3, 1][..], &size(message.len()), &message].concat()
}

/// Takes the hello, and then sends, or receives, as the byte behind it says.
fn server() -> SocketAddr {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
    let address = listener.local_addr().unwrap();
    std::thread::spawn(move || {
        for socket in listener.incoming().flatten() {
            std::thread::spawn(move || serve(socket));
        }
    });
    address
}

fn serve(mut socket: TcpStream) {
    let mut begin = vec![0; hello().len() + 1];
    if socket.read_exact(&mut begin).is_err() {
        return;
    }
    match begin.last() {
        Some(b'd') => send(&mut socket, SIZE),
        Some(b'u') => {
            receive(&mut socket, SIZE);
            socket.write_all(b".").unwrap();
        }
        _ => socket.write_all(b".").unwrap(),
    }
}

fn send(socket: &mut TcpStream, size: u64) {
    let (buffer, mut left) = (vec![7; BUFFER], size);
    while left > 0 {
        let here = usize::try_from(left).unwrap().min(BUFFER);
        socket.write_all(&buffer[..here]).unwrap();
        left -= here as u64;
    }
}

fn receive(socket: &mut TcpStream, size: u64) {
    let (mut buffer, mut left) = (vec![0; BUFFER], size);
    while left > 0 {
        let count = socket.read(&mut buffer).unwrap();
        assert!(count > 0, "it broke off with {left} bytes left");
        left -= count as u64;
    }
}

/// A connection to the server: by itself, or through the proxy.
fn dial(server: SocketAddr, proxy: Option<SocketAddr>, then: u8) -> TcpStream {
    let mut socket = TcpStream::connect(proxy.unwrap_or(server)).unwrap();
    if proxy.is_some() {
        let connect = format!("CONNECT server.example:{} HTTP/1.1\r\n\r\n", server.port());
        socket.write_all(connect.as_bytes()).unwrap();
        let mut established = [0; 39];
        socket.read_exact(&mut established).unwrap();
        assert!(established.starts_with(b"HTTP/1.1 200 "));
    }
    socket.write_all(&[&hello()[..], &[then]].concat()).unwrap();
    socket
}

fn download(server: SocketAddr, proxy: Option<SocketAddr>) -> Duration {
    let mut socket = dial(server, proxy, b'd');
    let start = Instant::now();
    receive(&mut socket, SIZE);
    start.elapsed()
}

fn upload(server: SocketAddr, proxy: Option<SocketAddr>) -> Duration {
    let mut socket = dial(server, proxy, b'u');
    let start = Instant::now();
    send(&mut socket, SIZE);
    receive(&mut socket, 1);
    start.elapsed()
}

fn short(server: SocketAddr, proxy: Option<SocketAddr>) -> Duration {
    let start = Instant::now();
    receive(&mut dial(server, proxy, b's'), 1);
    start.elapsed()
}

fn middle(mut times: Vec<Duration>) -> Duration {
    times.sort_unstable();
    times[times.len() / 2]
}

fn main() {
    // Two threads, as in the server.
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
    let server = server();
    let allow = expand(&read_list(&[format!("server.example:{}", server.port())]).unwrap(), &Default::default());
    let policy = Policy {
        networks: vec!["127.0.0.1/32".parse().unwrap()],
        limits: Limits { connection_bytes: u64::MAX, task_bytes: u64::MAX, ..Limits::default() },
        resolver: Arc::new(Here),
        ..Policy::new(allow)
    };
    let (egress, proxy) = runtime.block_on(async {
        let listener = tokio::net::TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
        let proxy = listener.local_addr().unwrap();
        (serve_on(listener, policy, Arc::new(Nobody)), proxy)
    });

    println!("| what | direct | through the proxy | share |\n| --- | --- | --- | --- |");
    for (what, transfer) in [("download", download as fn(_, _) -> Duration), ("upload", upload)] {
        let (mut direct, mut proxied) = (Vec::new(), Vec::new());
        for _ in 0..ROUNDS {
            direct.push(transfer(server, None));
            proxied.push(transfer(server, Some(proxy)));
        }
        let rate = |times: Vec<Duration>| SIZE as f64 / middle(times).as_secs_f64() / 1e9;
        let (direct, proxied) = (rate(direct), rate(proxied));
        println!("| {what}, GB/s | {direct:.2} | {proxied:.2} | {:.0} % |", proxied / direct * 100.0);
    }
    let (mut direct, mut proxied) = (Vec::new(), Vec::new());
    for _ in 0..SHORT {
        direct.push(short(server, None));
        proxied.push(short(server, Some(proxy)));
    }
    let (direct, proxied) = (middle(direct), middle(proxied));
    println!("| a short connection, µs | {} | {} | |", direct.as_micros(), proxied.as_micros());
    runtime.block_on(egress.end());
}
