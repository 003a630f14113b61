//! Puts the rooms together: configuration in, a running server out.

use std::net::{SocketAddr, TcpListener};
use std::os::unix::fs::DirBuilderExt;
use std::sync::Arc;
use std::time::Duration;

use actix_web::dev::ServerHandle;
use actix_web::{App as Actix, HttpServer, web};
use anyhow::{Context, bail};
use metrics_exporter_prometheus::{PrometheusBuilder, PrometheusHandle};
use orchestra_actors::calls::CallMarks;
use orchestra_actors::ledger::Ledgers;
use orchestra_actors::mirror::Mirrors;
use orchestra_actors::policy::RetryPolicy;
use orchestra_actors::speech::Speech;
use orchestra_actors::usage::Totals;
use orchestra_actors::workshop::egress::EgressDesk;
use orchestra_actors::workshop::{SetupRules, Setups, Workshop};
use orchestra_actors::{AuditService as _, BillingDesk, Capacity, Defaults, ErasureMarks, Notary, Orchestra, Webhooks};
use orchestra_events::blob::FolderBlobs;
use orchestra_events::key::Scope;
use orchestra_events::projections::ReadModels;
use orchestra_events::store::sqlite::SqliteStore;
use orchestra_events::task::event::Attempts;
use orchestra_events::{Actor, EventStore, KeyId, SandboxId};
use orchestra_runtime::egress::SystemResolver;
use orchestra_runtime::forge::Forges;
use orchestra_runtime::gateway::Gateway;
use orchestra_runtime::git::{CacheLimits, Git, GitConfig};
use orchestra_runtime::model::Models;
use orchestra_runtime::sandbox::{Containers, Limits, SandboxConfig, SandboxSpec, Sandboxes, SetupLimits};
use orchestra_runtime::server_key::ServerKey;
use orchestra_runtime::texts::Texts;
use orchestra_runtime::vault::Vault;
use orchestra_web::App;
use orchestra_web::auth::{
    self, KeyRing, Sessions, Transport, ensure_admin_key, issue_key, revoke_key, write_refusals, write_uses,
};
use orchestra_web::fragments::Fragments;
use orchestra_web::pages::Dashboard;
use secrecy::{ExposeSecret, SecretString};
use tokio_util::sync::CancellationToken;

use crate::config::{Config, parse_bytes, parse_duration};

/// Threads that serve HTTP. The work is elsewhere: two keep a busy dashboard from delaying a submission.
const WEB_WORKERS: usize = 2;
/// The folder of signed checkpoints in the data folder.
pub const CHECKPOINTS: &str = "checkpoints";
/// How long a new key may take to be known.
const KEY_WAIT: Duration = Duration::from_secs(5);
/// How long open connections may take to end when the server stops.
const SHUTDOWN_SECONDS: u64 = 3;

/// A running server.
pub struct Server {
    /// Where it listens.
    pub address: SocketAddr,
    /// The actors.
    pub orchestra: Arc<Orchestra>,
    webhooks: Arc<Webhooks>,
    /// What the handlers share.
    pub app: web::Data<App>,
    /// The admin key, when this was the first start.
    pub admin_key: Option<SecretString>,
    notary: Arc<Notary>,
    public_url: String,
    handle: ServerHandle,
    serving: tokio::task::JoinHandle<std::io::Result<()>>,
    cancel: CancellationToken,
}

/// Installs the recorder behind `/metrics`. Once a process.
fn metrics() -> Option<PrometheusHandle> {
    PrometheusBuilder::new().install_recorder().ok()
}

/// Opens the store, starts the actors and serves. Open tasks are taken up before this returns.
pub async fn start(config: &Config) -> anyhow::Result<Server> {
    let data = &config.data_dir;
    // What is in it is the teams' alone: prompts, conversations, diffs. A folder that is there already keeps its mode.
    std::fs::DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(data)
        .with_context(|| format!("cannot create the data folder {}", data.display()))?;
    let log = Arc::new(
        SqliteStore::open(data.join("events.db"))
            .with_context(|| format!("cannot open the event store in {}", data.display()))?,
    );
    let store: Arc<dyn EventStore> = Arc::clone(&log) as _;
    let signing = ServerKey::open(data)?.checkpoint_key();
    let notary = Arc::new(Notary::new(log, signing, &config.node, Some(data.join(CHECKPOINTS)))?);
    let read = Arc::new(ReadModels::open(&data.join("read.db")).context("cannot open the read models")?);
    let keys = Arc::new(KeyRing::load(&*store).await.context("cannot read the API keys")?);
    let admin_key = ensure_admin_key(&*store, &keys).await.context("cannot issue the first key")?;
    let lasting = config.sessions.lasting()?;
    let sessions = Arc::new(Sessions::load(&*store, lasting).await.context("cannot read who is signed in")?);
    let cancel = CancellationToken::new();
    actix_web::rt::spawn(Arc::clone(&keys).follow(Arc::clone(&store), cancel.clone().cancelled_owned()));
    actix_web::rt::spawn(Arc::clone(&sessions).follow(Arc::clone(&store), cancel.clone().cancelled_owned()));
    let uses = write_uses(Arc::clone(&keys), Arc::clone(&store), cancel.clone().cancelled_owned());
    actix_web::rt::spawn(uses);

    let workshop = workshop(config, &store).await?;
    let dashboard = Dashboard {
        blobs: Some(Arc::clone(&workshop.blobs)),
        fragments: config.templates_dir.as_deref().map_or_else(Fragments::default, Fragments::with_overrides),
        ..Dashboard::default()
    };
    let images = Arc::clone(&workshop.images);
    let orchestra = Orchestra::start(
        Arc::clone(&store),
        Arc::clone(&read),
        workshop,
        Capacity { places: config.scheduler.places, per_team: config.scheduler.per_team },
        Defaults {
            timeout_seconds: parse_duration(&config.sandbox.timeout)?.as_secs(),
            retry: Some(Attempts { most: config.retry.attempts, workspace: config.retry.workspace }),
            retention: config.retention()?,
        },
    );
    orchestra.limit_tasks(Arc::new(config.open_tasks(Arc::clone(&keys))));
    let server_key = Arc::new(ServerKey::open(data).context("cannot use the server's key")?);
    let rules = config.webhooks.rules()?;
    let webhooks = Webhooks::start(Arc::clone(&store), Arc::clone(&server_key), Arc::new(SystemResolver), rules);
    let listener = TcpListener::bind(&config.listen)
        .with_context(|| format!("cannot listen on {}; is another server running there?", config.listen))?;
    let address = listener.local_addr()?;
    let (tasks, campaigns, budgets) = (Arc::clone(&orchestra), Arc::clone(&orchestra), Arc::clone(&orchestra));
    let bills = Arc::new(BillingDesk::new(Arc::clone(&store), Arc::clone(&read)));
    if config.billing.close_after > 0 {
        let closing = Arc::clone(&bills).close_in_time(config.billing.close_after, cancel.clone().cancelled_owned());
        actix_web::rt::spawn(closing);
    }
    let public_url = config.public_url.clone().unwrap_or_else(|| format!("http://{address}"));
    let people = config.people(&public_url)?;
    // Before anybody is served: who was signed in under another configuration may be nobody under this one.
    let held = sessions.hold_to(&*store, people.as_ref()).await;
    held.context("cannot end the sessions that the configuration gives nothing any more")?;
    let app = App::new(tasks, campaigns, budgets, store, read, keys)
        .with_billing(bills)
        .with_dashboard(dashboard)
        .with_audit(Arc::clone(&notary) as _)
        .with_people(sessions, people)
        .reached(Transport::of(&public_url))
        .with_webhooks(Arc::clone(&webhooks) as _)
        .behind(config.proxies()?)
        .limited(auth::Limits::new(config.rates()));
    let refusals = Arc::clone(&app.refusals);
    actix_web::rt::spawn(write_refusals(refusals, Arc::clone(&app.store), cancel.clone().cancelled_owned()));
    let app = web::Data::new(match metrics() {
        Some(handle) => app.with_metrics(handle),
        None => app,
    });
    let shared = app.clone();
    let server = HttpServer::new(move || {
        let shared = shared.clone();
        Actix::new().configure(move |cfg| orchestra_web::configure(cfg, shared))
    })
    .on_connect(orchestra_web::live::stream::bound_writes)
    .workers(WEB_WORKERS)
    .shutdown_timeout(SHUTDOWN_SECONDS)
    .disable_signals()
    .listen(listener)?
    .run();
    let handle = server.handle();
    let serving = actix_web::rt::spawn(server);
    // Beside everything else: a task that needs one of them before waits for its pull.
    actix_web::rt::spawn(cancel.clone().run_until_cancelled_owned(async move { images.pull_all().await }));
    let resumed = orchestra.resume().await.context("cannot take up the open tasks")?;
    webhooks.resume().await.context("cannot take up the webhooks")?;
    let forgetting = Arc::clone(&orchestra);
    actix_web::rt::spawn(cancel.clone().run_until_cancelled_owned(async move { forgetting.keep_forgetting().await }));
    tracing::info!(%address, resumed, "serving");
    // The first turn comes at once: what was signed last is looked at before anything goes on.
    let interval = parse_duration(&config.audit.checkpoint_interval)?;
    actix_web::rt::spawn(Arc::clone(&notary).at_intervals(interval, cancel.clone().cancelled_owned()));
    Ok(Server { address, orchestra, webhooks, app, admin_key, notary, public_url, handle, serving, cancel })
}

async fn workshop(config: &Config, store: &Arc<dyn EventStore>) -> anyhow::Result<Workshop> {
    let data = &config.data_dir;
    let this_program = std::env::current_exe().context("cannot find this program's own file")?;
    let state_dir = data.join("sandboxes");
    let host = SandboxConfig { state_dir, images: config.images_dir(), helper: this_program.clone() };
    let containers =
        Containers::with_host_ids(host, config.sandbox.host_ids.ids()?).context("cannot prepare the sandboxes")?;
    let limits = limits(config)?;
    let ways_out = config.egress.rules(&config.teams, &config.images_dir())?;
    // Like those of tasks that name neither image nor hosts. Looking into the image for the first time takes a while.
    let (rules, image) = (ways_out.clone(), config.sandbox.image.clone());
    let env = tokio::task::spawn_blocking(move || rules.usual_variables(&image)).await?;
    let (nobody, image) = (SandboxId::from_uuid(uuid::Uuid::nil()), config.sandbox.image.clone());
    let ahead = SandboxSpec { env, ..SandboxSpec::of_a_task(nobody, image, limits.clone()) };
    containers.keep_ready(config.sandbox.warm_pool as usize, ahead).await;
    let sandboxes: Arc<dyn Sandboxes> = Arc::new(containers);
    let mut git = GitConfig::new(this_program);
    git.depth = Some(config.git.depth).filter(|depth| *depth > 0);
    git.push_options.clone_from(&config.git.push_options);
    let git = Arc::new(Git::new(git));
    let cache = CacheLimits {
        max_bytes: parse_bytes(&config.cache.max_size)?,
        max_age: parse_duration(&config.cache.max_age)?,
        max_lowers_per_mirror: config.cache.lowers,
    };
    let mirrors = Mirrors::start(Arc::clone(&git), Arc::clone(&sandboxes), &data.join("mirrors"), cache)
        .context("cannot create the folder of mirrors")?;
    let repositories = data.join("repositories");
    std::fs::create_dir_all(&repositories).context("cannot create the folder of repositories")?;
    let models = Arc::new(Models::new(config.providers()?, config.timeouts()?)?);
    let gateway = Arc::new(Gateway::new(Arc::clone(&models), config.gateway_policy()));
    Ok(Workshop {
        blobs: Arc::new(FolderBlobs::open(data.join("blobs")).context("cannot open the blob store")?),
        sandboxes,
        git,
        mirrors,
        setups: Setups::new(SetupRules {
            timeout: parse_duration(&config.sandbox.setup_timeout)?,
            limits: SetupLimits {
                max_bytes: parse_bytes(&config.cache.setups_max_size)?,
                max_age: parse_duration(&config.cache.setups_max_age)?,
            },
        }),
        forges: Forges::new(config.forges.clone(), &config.default_forge),
        commits: config.commits.rules()?,
        public_url: config.public_url.clone(),
        model_client: Arc::clone(&gateway) as _,
        gateway,
        models,
        ledgers: Ledgers::start(Arc::clone(store)),
        allowed_models: config.allowed_models()?,
        branches: config.branch_policies()?,
        egress: EgressDesk::new(ways_out).context("cannot start the threads of the sandboxes' way out")?,
        texts: Texts::open(config.texts_dir().as_deref()).context("in templates_dir")?,
        vault: Arc::new(Vault::new()),
        calls: CallMarks::open(data.join("calls")).context("cannot create the folder of call marks")?,
        erasing: ErasureMarks::open(data.join("erasing")).context("cannot create the folder of erasures")?,
        speech: Speech::default(),
        images: Arc::new(config.supply()?),
        image_rules: config.image_rules()?,
        policy: RetryPolicy {
            most_failures: config.retry.most_failures,
            first_wait: parse_duration(&config.retry.first_wait)?,
            attempt_wait: parse_duration(&config.retry.attempt_wait)?,
            refund_failed: config.billing.refund_failed,
            ..RetryPolicy::default()
        },
        limits,
        totals: Totals::default(),
        node: config.node.clone(),
        repositories,
    })
}

/// What every sandbox may use; how long it may live is each task's own.
fn limits(config: &Config) -> anyhow::Result<Limits> {
    Ok(Limits {
        memory_bytes: parse_bytes(&config.sandbox.memory)?,
        cpus: config.sandbox.cpus,
        pids: config.sandbox.pids,
        disk_bytes: parse_bytes(&config.sandbox.disk)?,
        timeout: Duration::ZERO,
    })
}

impl Server {
    /// Where a client finds it.
    pub fn url(&self) -> String {
        format!("http://{}", self.address)
    }

    /// A link that signs a browser in as the holder of this key: once, and within ten minutes.
    pub fn sign_in_link(&self, key: KeyId) -> Option<SecretString> {
        let ticket = self.app.dashboard.tickets.issue(self.app.keys.holder(key)?)?;
        Some(format!("{}/sign-in/{}", self.public_url, ticket.expose_secret()).into())
    }

    /// A key for the time of one command; [`revoke`](Self::revoke) it afterwards.
    pub async fn temporary_key(&self, name: &str) -> anyhow::Result<(KeyId, SecretString)> {
        let issuer = Actor::system("command-line");
        let (id, text) = issue_key(&*self.app.store, name, None, "temporary", vec![Scope::Admin], &issuer).await?;
        let head = self.app.store.head().await?;
        if !self.app.keys.wait_for(head, KEY_WAIT).await {
            bail!("the new key did not become valid in time");
        }
        Ok((id, text))
    }

    /// Ends a key for good.
    pub async fn revoke(&self, id: KeyId) -> anyhow::Result<()> {
        Ok(revoke_key(&*self.app.store, id, &Actor::system("command-line")).await?)
    }

    /// The name of the key that signs the log.
    pub fn signing_key(&self) -> String {
        orchestra_events::audit::key_id(&self.notary.public_key()).to_string()
    }

    /// Serves until the process is asked to end.
    pub async fn until_asked_to_end(self) -> anyhow::Result<()> {
        let mut terminate = tokio::signal::unix::signal(tokio::signal::unix::SignalKind::terminate())?;
        tokio::select! {
            _ = tokio::signal::ctrl_c() => {}
            _ = terminate.recv() => {}
        }
        tracing::info!("stopping; running sandboxes stay up and are taken up at the next start");
        self.stop().await
    }

    /// Stops serving. What runs in sandboxes goes on, and the next start finds it.
    pub async fn stop(self) -> anyhow::Result<()> {
        self.cancel.cancel();
        self.handle.stop(true).await;
        self.serving.await.context("the web server died")??;
        self.orchestra.stop().await;
        // Last: what the others wrote on their way out is told too, or at the next start.
        self.webhooks.stop().await;
        Ok(())
    }
}
