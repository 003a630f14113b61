//! The dashboard over a scripted world: for looking at it, and for the browser test.
//!
//! Prints its address, a key and the task to watch. The task goes on while it is watched; once it is done, the next one
//! begins. The port can be given as the first argument.
#![allow(clippy::print_stdout, reason = "what it prints is its interface")]

#[allow(dead_code, reason = "the tests use the rest")]
#[path = "../tests/pages/scripted.rs"]
mod scripted;

use std::time::Duration;

use secrecy::ExposeSecret as _;

#[actix_web::main]
async fn main() -> std::io::Result<()> {
    let port = std::env::args().nth(1).and_then(|port| port.parse().ok()).unwrap_or(0);
    let folder = tempfile::tempdir()?;
    let world = scripted::World::new(folder.path()).await;
    let (live, sandbox) = world.seed().await;
    let app = world.app.clone();
    let server = actix_web::HttpServer::new(move || {
        let app = app.clone();
        actix_web::App::new().configure(|cfg| orchestra_web::configure(cfg, app))
    })
    .workers(2)
    .bind(("127.0.0.1", port))?;
    println!("url http://{}", server.addrs()[0]);
    println!("key {}", world.admin.expose_secret());
    println!("task {live}");
    actix_web::rt::spawn(async move {
        let pace = Duration::from_millis(2_000);
        world.work(live, pace).await;
        world.deliver(live, sandbox).await;
        loop {
            let task = "Bump terraform-aws-provider from 5.x to 6.x; update breaking calls";
            let next = world.create(task, "acme/infra", "platform", "claude-sonnet-4-6", 200).await;
            world.play(next, pace).await;
            tokio::time::sleep(Duration::from_secs(20)).await;
        }
    });
    server.run().await
}
