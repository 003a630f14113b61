//! The gateways of others, as their own package managers install them (`peers.sh`).

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use super::load::Target;
use super::process::{Member, free_address};
use super::upstream;

/// Where they are installed, unless this variable names another folder.
const FOLDER: &str = "ORCHESTRA_BENCH_PEERS";

fn sources() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("benches/gateway")
}

fn folder() -> PathBuf {
    match std::env::var_os(FOLDER) {
        Some(folder) => folder.into(),
        None => Path::new(env!("CARGO_MANIFEST_DIR")).join("../target/gateway-peers"),
    }
}

/// Installs what is missing. What cannot be installed is reported where it is looked for.
pub fn install() {
    let script = sources().join("peers.sh");
    match Command::new("sh").arg(script).arg(folder()).stdin(Stdio::null()).status() {
        Ok(status) if status.success() => {}
        Ok(_) => eprintln!("not every peer could be installed"),
        Err(error) => eprintln!("the peers could not be installed: {error}"),
    }
}

fn missing(program: &Path) -> Result<(), String> {
    if program.exists() {
        return Ok(());
    }
    Err(format!("not installed: there is no {}; run with --peers, or see peers.sh", program.display()))
}

/// LiteLLM's proxy: one worker, no database, its own checks of keys off.
pub fn litellm(upstream: SocketAddr, scratch: &Path) -> Result<(Target, Member), String> {
    let program = folder().join("litellm/bin/litellm");
    missing(&program)?;
    let settings = scratch.join("litellm.yaml");
    let text = format!(
        "model_list:\n  - model_name: claude-sonnet-4-6\n    litellm_params:\n      model: anthropic/claude-sonnet-4-6\n      \
         api_base: http://{upstream}\n      api_key: {}\n",
        upstream::KEY
    );
    std::fs::write(&settings, text).map_err(|error| error.to_string())?;
    let address = free_address();
    let mut command = Command::new(program);
    command
        .arg("--config")
        .arg(settings)
        .args(["--host", "127.0.0.1", "--port", &address.port().to_string()])
        .args(["--num_workers", "1", "--telemetry", "False"])
        .env("LITELLM_DANGEROUSLY_PERMIT_WEAK_OR_UNSET_MASTER_KEY", "true")
        // It would fetch its prices otherwise.
        .env("LITELLM_LOCAL_MODEL_COST_MAP", "True")
        .env("LITELLM_LOG", "ERROR");
    let member = Member::program(command, address, &scratch.join("litellm.log"))?;
    Ok((Target { addresses: vec![address], headers: Vec::new() }, member))
}

/// Portkey's gateway on Node.
pub fn portkey(upstream: SocketAddr, scratch: &Path) -> Result<(Target, Member), String> {
    let program = folder().join("portkey/node_modules/@portkey-ai/gateway/build/start-server.js");
    missing(&program)?;
    let address = free_address();
    let mut command = Command::new("node");
    command
        .arg("--import")
        .arg(sources().join("portkey-preload.mjs"))
        .arg(program)
        .args([&format!("--port={}", address.port()), "--headless"]);
    let member = Member::program(command, address, &scratch.join("portkey.log"))?;
    let headers = vec![
        ("x-api-key", upstream::KEY.to_owned()),
        ("x-portkey-provider", "anthropic".to_owned()),
        ("x-portkey-custom-host", format!("http://{upstream}/v1")),
    ];
    Ok((Target { addresses: vec![address], headers }, member))
}
