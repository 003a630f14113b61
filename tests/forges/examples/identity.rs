//! The identity provider of the tests by itself, for signing in with a real browser. Whoever comes is in the groups that are
//! its arguments. Prints its issuer, and the client's name and secret there.
#![allow(clippy::print_stdout, reason = "what it prints is its interface")]

use orchestra_test_forges::identity::{CLIENT_ID, CLIENT_SECRET, IdentityServer};

#[tokio::main(flavor = "current_thread")]
async fn main() {
    let provider = IdentityServer::start().await;
    provider.directory().groups = std::env::args().skip(1).collect();
    println!("issuer {}", provider.issuer());
    println!("client {CLIENT_ID}");
    println!("secret {CLIENT_SECRET}");
    std::future::pending::<()>().await;
}
