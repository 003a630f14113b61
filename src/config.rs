//! The configuration: one TOML file, every key also in the environment, unknown keys refused with the nearest known.
//!
//! Layers, later over earlier: built-in defaults, the file, `ORCHESTRA_` variables (the path joined by `__`), the
//! command line. [`Loaded`] remembers which layer each value came from, for `orchestra serve --print-config`.

mod commits;
mod egress;
mod images;
mod layers;
mod limits;
mod retention;
mod sign_in;
mod webhooks;

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context, bail};
use orchestra_actors::Retention;
use orchestra_actors::allowed::AllowedModels;
use orchestra_events::task::event::{MAX_ATTEMPTS, Workspace};
use orchestra_runtime::forge::{ForgeConfig, ForgeKind};
use orchestra_runtime::gateway::{Abandoned, GatewayPolicy};
use orchestra_runtime::git::{BranchOverrides, BranchPolicies, BranchSettings};
use orchestra_runtime::model::{Dialect, HostedTool, PriceRow, ProviderConfig, Timeouts, read_operator};
use orchestra_runtime::sandbox::{HostIds, MAX_READY};
use secrecy::SecretString;
use serde::{Deserialize, Serialize};

pub use retention::{RetentionSection, TeamRetention};

pub use commits::CommitsSection;
pub use egress::{EgressSection, TeamEgress};
pub use images::ImagesSection;
pub use layers::{Loaded, load};
pub use limits::{LimitsSection, TeamLimits};
pub use sign_in::{OidcSection, SessionsSection};
pub use webhooks::WebhooksSection;

/// Every key. `*` stands for a name of the operator's choosing.
pub const KEYS: &[&str] = &[
    "listen",
    "data_dir",
    "store",
    "node",
    "public_url",
    "trusted_proxies",
    "default_forge",
    "templates_dir",
    "log",
    "models.*.dialect",
    "models.*.base_url",
    "models.*.api_key_env",
    "models.*.key_required",
    "models.*.prices",
    "forges.*.kind",
    "forges.*.git_url",
    "forges.*.api_url",
    "forges.*.root",
    "git.depth",
    "commits.history",
    "commits.author",
    "commits.committer",
    "commits.co_authors",
    "commits.protected_files",
    "commits.names_not_utf8",
    "commits.names_not_on_windows",
    "commits.case_twins",
    "commits.lfs",
    "commits.search_secrets",
    "commits.secrets_allowed_in",
    "commits.max_file",
    "commits.max_change",
    "commits.import_memory",
    "git.push_options",
    "branches.bases",
    "branches.template",
    "branches.names",
    "branches.allow_default",
    "cache.max_size",
    "cache.max_age",
    "cache.lowers",
    "cache.setups_max_size",
    "cache.setups_max_age",
    "images.allow",
    "images.keep",
    "images.max_size",
    "images.docker_config",
    "images.*.reference",
    "images.*.username",
    "images.*.password_env",
    "sandbox.image",
    "sandbox.images_dir",
    "sandbox.memory",
    "sandbox.cpus",
    "sandbox.pids",
    "sandbox.disk",
    "sandbox.timeout",
    "sandbox.setup_timeout",
    "sandbox.warm_pool",
    "sandbox.host_ids.first",
    "sandbox.host_ids.ranges",
    "scheduler.places",
    "scheduler.per_team",
    "retry.most_failures",
    "retry.first_wait",
    "retry.attempts",
    "retry.workspace",
    "retry.attempt_wait",
    "gateway.connect_timeout",
    "gateway.first_byte_timeout",
    "gateway.first_byte_per_1000_tokens",
    "gateway.first_byte_longest",
    "gateway.idle_timeout",
    "gateway.retries_per_task",
    "gateway.abandoned",
    "gateway.hosted_tools.*",
    "prices_file",
    "billing.refund_failed",
    "audit.checkpoint_interval",
    "billing.close_after",
    "retention.content_days",
    "teams.*.models",
    "teams.*.image",
    "teams.*.images",
    "teams.*.branches.bases",
    "teams.*.branches.template",
    "teams.*.branches.names",
    "teams.*.branches.allow_default",
    "teams.*.limits.requests_per_minute",
    "teams.*.limits.concurrent_tasks",
    "teams.*.egress.allow",
    "teams.*.egress.permit",
    "limits.requests_per_minute",
    "limits.team_requests_per_minute",
    "limits.failures_per_minute",
    "limits.concurrent_tasks",
    "limits.team_concurrent_tasks",
    "teams.*.retention.content_days",
    "egress.allow",
    "egress.permit",
    "egress.networks",
    "egress.max_bytes",
    "egress.max_connections",
    "egress.idle_timeout",
    "oidc.issuer",
    "oidc.client_id",
    "oidc.client_secret_env",
    "oidc.label",
    "oidc.scopes",
    "oidc.groups_claim",
    "oidc.map",
    "sessions.lifetime",
    "sessions.idle",
    "webhooks.networks",
    "webhooks.max",
    "webhooks.timeout",
    "webhooks.first_wait",
    "webhooks.give_up",
    "webhooks.disable_after",
];

/// The effective configuration.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Config {
    /// Address and port of the server.
    pub listen: String,
    /// Where everything is kept.
    pub data_dir: PathBuf,
    /// `sqlite`.
    pub store: String,
    /// The name of this node in `claimed` events.
    pub node: String,
    /// Where users reach the dashboard, when that is not `http://{listen}`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub public_url: Option<String>,
    /// The networks of the proxies whose word about a caller's address is believed.
    pub trusted_proxies: Vec<String>,
    /// The forge of `owner/name`.
    pub default_forge: String,
    /// The operator's own templates, over the built-in ones.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub templates_dir: Option<PathBuf>,
    /// The operator's prices, over the built-in ones and under those of `models.NAME.prices`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub prices_file: Option<PathBuf>,
    /// What is logged, as `tracing` directives.
    pub log: String,
    /// The model providers.
    #[serde(default)]
    pub models: BTreeMap<String, ModelSection>,
    /// The forges.
    #[serde(default)]
    pub forges: BTreeMap<String, ForgeConfig>,
    /// How repositories are fetched and pushed to.
    pub git: GitSection,
    /// How the agents' work becomes commits.
    pub commits: CommitsSection,
    /// Which branches tasks may start from and push to.
    pub branches: BranchSettings,
    /// How much of what was fetched is kept.
    pub cache: CacheSection,
    /// Where images come from.
    pub images: ImagesSection,
    /// What a sandbox may use.
    pub sandbox: SandboxSection,
    /// How much runs at once.
    pub scheduler: SchedulerSection,
    /// What follows a failed step.
    pub retry: RetrySection,
    /// How model providers are waited for and asked again.
    pub gateway: GatewaySection,
    /// What is billed.
    pub billing: BillingSection,
    /// How the record is signed.
    pub audit: AuditSection,
    /// How much callers may ask at once.
    pub limits: LimitsSection,
    /// How long words are kept.
    pub retention: RetentionSection,
    /// What the operator says about single teams.
    #[serde(default)]
    pub teams: BTreeMap<String, TeamSection>,
    /// Where sandboxes may connect to.
    pub egress: EgressSection,
    /// Who vouches for people.
    #[serde(default)]
    pub oidc: OidcSection,
    /// How long people stay signed in.
    #[serde(default)]
    pub sessions: SessionsSection,
    /// Who outside is told what happens.
    pub webhooks: WebhooksSection,
}

/// `models.NAME`.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ModelSection {
    /// The wire format.
    pub dialect: Dialect,
    /// Where it is served.
    pub base_url: String,
    /// The variable that holds the operator's own key.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub api_key_env: Option<String>,
    /// Whether a call needs a key at all.
    #[serde(default = "yes")]
    pub key_required: bool,
    /// The operator's prices.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub prices: Vec<PriceRow>,
}

fn yes() -> bool {
    true
}

/// `git`.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct GitSection {
    /// Commits of history that a first fetch over HTTP brings; 0 fetches all.
    pub depth: u32,
    /// Options sent with every push, such as GitLab's `ci.skip`. A forge that takes none gets the push without them.
    #[serde(default)]
    pub push_options: Vec<String>,
}

/// `cache`.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct CacheSection {
    /// Bytes of all repositories and work trees that are kept for the next task, such as `20GiB`.
    pub max_size: String,
    /// What no task has used for so long is removed.
    pub max_age: String,
    /// Commits of one repository whose work trees are kept.
    pub lowers: usize,
    /// Bytes of all that repositories' setup scripts have made and that is kept for the next task.
    pub setups_max_size: String,
    /// What of it no task has used for so long is removed.
    pub setups_max_age: String,
}

/// `sandbox`.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SandboxSection {
    /// The image of tasks that name none.
    pub image: String,
    /// Where images lie; `{data_dir}/images` when absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub images_dir: Option<PathBuf>,
    /// Memory, such as `2GiB`.
    pub memory: String,
    /// Processors' worth of time.
    pub cpus: f64,
    /// Processes and threads.
    pub pids: u32,
    /// Disk, such as `10GiB`.
    pub disk: String,
    /// Wall-clock limit of tasks that name none, such as `30m`.
    pub timeout: String,
    /// Wall-clock limit of a repository's setup script.
    pub setup_timeout: String,
    /// Sandboxes of the default image kept started ahead; 0 for none.
    pub warm_pool: u32,
    /// The host's user ids that sandboxes run with.
    pub host_ids: HostIdsSection,
}

/// `sandbox.host_ids`.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct HostIdsSection {
    /// The first of them; a multiple of 65,536.
    pub first: u32,
    /// How many sandboxes can exist at once; each has 65,536.
    pub ranges: u32,
}

impl HostIdsSection {
    /// The same, found good.
    pub fn ids(&self) -> anyhow::Result<HostIds> {
        HostIds::new(self.first, self.ranges).map_err(anyhow::Error::msg).context("in sandbox.host_ids")
    }
}

/// `scheduler`.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SchedulerSection {
    /// Tasks worked on at once.
    pub places: usize,
    /// Of those, for one team.
    pub per_team: usize,
}

/// `retry`.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RetrySection {
    /// Failures in a row after which an attempt is given up.
    pub most_failures: u32,
    /// The first wait is drawn from zero to this.
    pub first_wait: String,
    /// How often a task that does not say is attempted by itself.
    pub attempts: u32,
    /// What a further attempt begins with: `fresh` or `same`.
    pub workspace: Workspace,
    /// The wait before the second attempt; twice as long before each further one.
    pub attempt_wait: String,
}

/// `gateway`: the built-in agent's model calls keep to it too.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct GatewaySection {
    /// How long a connection to a provider may take, TLS included.
    pub connect_timeout: String,
    /// How long the first byte of a reply to an empty prompt may take.
    pub first_byte_timeout: String,
    /// How much longer for each thousand tokens of prompt.
    pub first_byte_per_1000_tokens: String,
    /// The longest wait for a first byte, however long the prompt.
    pub first_byte_longest: String,
    /// How long a reply may be silent in its middle.
    pub idle_timeout: String,
    /// How often the calls of one run of a harness may be made again, all together.
    pub retries_per_task: u32,
    /// What becomes of a reply whose reader is gone: `read-to-end`, or `settle-at-bound`.
    pub abandoned: Abandoned,
    /// The tools that a provider may run by itself, each with the input tokens that one use may bring in. Others are
    /// refused, because nothing bounds them.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub hosted_tools: BTreeMap<HostedTool, u64>,
}

/// `billing`.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct BillingSection {
    /// Whether an attempt that fails for the provider's or this server's fault is refunded.
    pub refund_failed: bool,
    /// How many days after its end a month is closed; 0: only when somebody asks.
    pub close_after: u16,
}

/// `audit`.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct AuditSection {
    /// How often the log is signed, if it has grown.
    pub checkpoint_interval: String,
}

/// `teams.NAME`.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TeamSection {
    /// The models it may use, as patterns; all that have a price when absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub models: Option<Vec<String>>,
    /// The image of its tasks that name none; `sandbox.image` when absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub image: Option<String>,
    /// The images its tasks may name, as patterns; all that are there when absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub images: Option<Vec<String>>,
    /// Its own rules about branches, over those of `branches`.
    #[serde(default)]
    pub branches: BranchOverrides,
    /// Where its tasks' sandboxes may connect to, in place of what `egress` says.
    #[serde(default, skip_serializing_if = "TeamEgress::is_empty")]
    pub egress: TeamEgress,
    /// How much it may ask at once, in place of what `limits` says.
    #[serde(default, skip_serializing_if = "TeamLimits::is_empty")]
    pub limits: TeamLimits,
    /// How long the words of its tasks are kept, in place of what `retention` says.
    #[serde(default, skip_serializing_if = "TeamRetention::is_empty")]
    pub retention: TeamRetention,
}

impl Default for Config {
    fn default() -> Self {
        let model = |dialect, base_url: &str, key: &str| ModelSection {
            dialect,
            base_url: base_url.to_owned(),
            api_key_env: Some(key.to_owned()),
            key_required: true,
            prices: Vec::new(),
        };
        let forge = |kind, git_url: &str, api_url: &str| ForgeConfig {
            kind,
            git_url: Some(git_url.to_owned()),
            api_url: Some(api_url.to_owned()),
            root: None,
        };
        Self {
            listen: "127.0.0.1:7070".to_owned(),
            data_dir: PathBuf::from("/var/lib/orchestra"),
            store: "sqlite".to_owned(),
            node: "node".to_owned(),
            public_url: None,
            trusted_proxies: Vec::new(),
            default_forge: "github".to_owned(),
            templates_dir: None,
            prices_file: None,
            log: "info".to_owned(),
            models: BTreeMap::from([
                ("anthropic".to_owned(), model(Dialect::Anthropic, "https://api.anthropic.com", "ANTHROPIC_API_KEY")),
                ("openai".to_owned(), model(Dialect::OpenaiChat, "https://api.openai.com/v1", "OPENAI_API_KEY")),
            ]),
            forges: BTreeMap::from([
                ("github".to_owned(), forge(ForgeKind::Github, "https://github.com", "https://api.github.com")),
                (
                    "bitbucket".to_owned(),
                    forge(ForgeKind::BitbucketCloud, "https://bitbucket.org", "https://api.bitbucket.org/2.0"),
                ),
                ("gitlab".to_owned(), forge(ForgeKind::Gitlab, "https://gitlab.com", "https://gitlab.com/api/v4")),
            ]),
            git: GitSection { depth: 1, push_options: Vec::new() },
            commits: CommitsSection::default(),
            branches: BranchSettings::default(),
            cache: CacheSection {
                max_size: "20GiB".to_owned(),
                max_age: "168h".to_owned(),
                lowers: 8,
                setups_max_size: "20GiB".to_owned(),
                setups_max_age: "168h".to_owned(),
            },
            images: ImagesSection::default(),
            sandbox: SandboxSection {
                image: "default".to_owned(),
                images_dir: None,
                memory: "2GiB".to_owned(),
                cpus: 2.0,
                pids: 512,
                disk: "10GiB".to_owned(),
                timeout: "30m".to_owned(),
                setup_timeout: "10m".to_owned(),
                warm_pool: 0,
                host_ids: HostIdsSection { first: HostIds::FIRST, ranges: HostIds::RANGES },
            },
            scheduler: SchedulerSection { places: 8, per_team: 8 },
            retry: RetrySection {
                most_failures: 5,
                first_wait: "500ms".to_owned(),
                attempts: 1,
                workspace: Workspace::Fresh,
                attempt_wait: "30s".to_owned(),
            },
            gateway: GatewaySection {
                connect_timeout: "15s".to_owned(),
                first_byte_timeout: "60s".to_owned(),
                first_byte_per_1000_tokens: "1s".to_owned(),
                first_byte_longest: "10m".to_owned(),
                idle_timeout: "2m".to_owned(),
                retries_per_task: 200,
                abandoned: Abandoned::ReadToEnd,
                hosted_tools: BTreeMap::new(),
            },
            billing: BillingSection { refund_failed: true, close_after: 0 },
            audit: AuditSection { checkpoint_interval: "10m".to_owned() },
            limits: LimitsSection::default(),
            retention: RetentionSection::default(),
            teams: BTreeMap::new(),
            egress: EgressSection::default(),
            oidc: OidcSection::default(),
            sessions: SessionsSection::default(),
            webhooks: WebhooksSection::default(),
        }
    }
}

/// A forge of bare repositories below a folder.
pub fn local_forge(root: PathBuf) -> ForgeConfig {
    ForgeConfig { kind: ForgeKind::Local, git_url: None, api_url: None, root: Some(root) }
}

/// Reads `512MiB`, `2GiB`, `1000` (bytes).
pub fn parse_bytes(text: &str) -> anyhow::Result<u64> {
    let text = text.trim();
    let digits = text.bytes().take_while(u8::is_ascii_digit).count();
    let number: u64 = text[..digits].parse().with_context(|| format!("{text:?} is no size such as 2GiB"))?;
    let unit: u64 = match text[digits..].trim() {
        "" | "B" => 1,
        "KiB" => 1 << 10,
        "MiB" => 1 << 20,
        "GiB" => 1 << 30,
        "TiB" => 1 << 40,
        unit => bail!("{unit:?} is no unit of size; use KiB, MiB, GiB or TiB"),
    };
    number.checked_mul(unit).with_context(|| format!("{text:?} is too large"))
}

/// Reads `500ms`, `30s`, `30m`, `2h`.
pub fn parse_duration(text: &str) -> anyhow::Result<Duration> {
    let text = text.trim();
    let digits = text.bytes().take_while(u8::is_ascii_digit).count();
    let number: u64 = text[..digits].parse().with_context(|| format!("{text:?} is no duration such as 30m"))?;
    let millis: u64 = match text[digits..].trim() {
        "ms" => 1,
        "s" => 1_000,
        "m" => 60_000,
        "h" => 3_600_000,
        unit => bail!("{unit:?} is no unit of time; use ms, s, m or h"),
    };
    Ok(Duration::from_millis(number.checked_mul(millis).with_context(|| format!("{text:?} is too long"))?))
}

impl Config {
    /// With every path as it is from everywhere: what the server starts has other working directories than the server.
    fn anchored(mut self) -> anyhow::Result<Self> {
        let optional = [
            &mut self.templates_dir,
            &mut self.prices_file,
            &mut self.sandbox.images_dir,
            &mut self.images.docker_config,
        ];
        let roots = self.forges.values_mut().filter_map(|forge| forge.root.as_mut());
        for path in std::iter::once(&mut self.data_dir).chain(optional.into_iter().flatten()).chain(roots) {
            *path = std::path::absolute(&*path).with_context(|| format!("{path:?} is no path"))?;
        }
        Ok(self)
    }

    fn check(&self) -> anyhow::Result<()> {
        let within = |path: &'static str| move || format!("in {path}");
        let memory = parse_bytes(&self.sandbox.memory).with_context(within("sandbox.memory"))?;
        let disk = parse_bytes(&self.sandbox.disk).with_context(within("sandbox.disk"))?;
        let timeout = parse_duration(&self.sandbox.timeout).with_context(within("sandbox.timeout"))?;
        parse_duration(&self.retry.first_wait).with_context(within("retry.first_wait"))?;
        parse_duration(&self.retry.attempt_wait).with_context(within("retry.attempt_wait"))?;
        parse_bytes(&self.cache.max_size).with_context(within("cache.max_size"))?;
        parse_duration(&self.cache.max_age).with_context(within("cache.max_age"))?;
        parse_bytes(&self.cache.setups_max_size).with_context(within("cache.setups_max_size"))?;
        parse_duration(&self.cache.setups_max_age).with_context(within("cache.setups_max_age"))?;
        let setup = parse_duration(&self.sandbox.setup_timeout).with_context(within("sandbox.setup_timeout"))?;
        let signed =
            parse_duration(&self.audit.checkpoint_interval).with_context(within("audit.checkpoint_interval"))?;
        self.proxies()?;
        self.allowed_models()?;
        self.commits.rules()?;
        self.branch_policies()?;
        self.sandbox.host_ids.ids()?;
        self.check_images()?;
        self.egress.rules(&self.teams, &self.images_dir())?;
        self.check_sign_in()?;
        self.webhooks.rules()?;
        let timeouts = self.timeouts()?;
        let refuse = |wrong: bool, text: &str| if wrong { bail!("{text}") } else { Ok(()) };
        refuse(self.cache.lowers == 0, "cache.lowers is at least 1")?;
        refuse(memory < 64 << 20, "sandbox.memory is at least 64MiB")?;
        refuse(
            timeouts.connect.is_zero() || timeouts.first_byte.is_zero() || timeouts.idle.is_zero(),
            "gateway.connect_timeout, first_byte_timeout and idle_timeout are above 0",
        )?;
        refuse(disk < 64 << 20, "sandbox.disk is at least 64MiB")?;
        refuse(timeout.as_secs() == 0, "sandbox.timeout is at least 1s")?;
        refuse(signed.as_secs() == 0, "audit.checkpoint_interval is at least 1s")?;
        refuse(setup.as_secs() == 0, "sandbox.setup_timeout is at least 1s")?;
        refuse(!(self.sandbox.cpus > 0.0 && self.sandbox.cpus <= 1024.0), "sandbox.cpus is above 0 and at most 1024")?;
        refuse(self.sandbox.pids < 16, "sandbox.pids is at least 16")?;
        refuse(
            self.sandbox.warm_pool as usize > MAX_READY,
            &format!("sandbox.warm_pool is at most {MAX_READY}: each holds memory and a disk"),
        )?;
        refuse(
            self.scheduler.places == 0 || self.scheduler.per_team == 0,
            "scheduler.places and per_team are at least 1",
        )?;
        refuse(
            self.retry.attempts == 0 || self.retry.attempts > MAX_ATTEMPTS,
            "retry.attempts is at least 1 and at most 10",
        )?;
        refuse(self.store != "sqlite", "store must be \"sqlite\": this build has no other event store")?;
        refuse(self.node.is_empty() || self.node.len() > 64, "node has 1 to 64 characters")?;
        refuse(
            !self.forges.contains_key(&self.default_forge),
            "default_forge names no forge; configure it under [forges.NAME]",
        )
    }

    /// How long providers are waited for.
    pub fn timeouts(&self) -> anyhow::Result<Timeouts> {
        let read = |path: &str, text: &str| parse_duration(text).with_context(|| format!("in gateway.{path}"));
        Ok(Timeouts {
            connect: read("connect_timeout", &self.gateway.connect_timeout)?,
            first_byte: read("first_byte_timeout", &self.gateway.first_byte_timeout)?,
            first_byte_per_1000_tokens: read("first_byte_per_1000_tokens", &self.gateway.first_byte_per_1000_tokens)?,
            first_byte_cap: read("first_byte_longest", &self.gateway.first_byte_longest)?,
            idle: read("idle_timeout", &self.gateway.idle_timeout)?,
        })
    }

    /// What the gateway does where it has a choice.
    pub fn gateway_policy(&self) -> GatewayPolicy {
        GatewayPolicy {
            abandoned: self.gateway.abandoned,
            hosted_tools: self.gateway.hosted_tools.clone(),
            retries_per_task: self.gateway.retries_per_task,
            ..GatewayPolicy::default()
        }
    }

    /// Which models the teams may use.
    pub fn allowed_models(&self) -> anyhow::Result<AllowedModels> {
        let lists = self.teams.iter().filter_map(|(team, section)| Some((team, section.models.as_ref()?)));
        Ok(AllowedModels::new(lists)?)
    }

    /// Which branches the teams' tasks may start from and push to.
    pub fn branch_policies(&self) -> anyhow::Result<BranchPolicies> {
        let own = self.teams.iter().map(|(team, section)| (team, &section.branches));
        Ok(BranchPolicies::new(&self.branches, own)?)
    }

    /// How long the words of what has ended are kept.
    pub fn retention(&self) -> anyhow::Result<Retention> {
        retention::rules(&self.retention, &self.teams)
    }

    /// The operator's own texts: pull requests, commits, comments.
    pub fn texts_dir(&self) -> Option<PathBuf> {
        self.templates_dir.as_ref().map(|folder| folder.join("texts"))
    }

    /// Where images lie.
    pub fn images_dir(&self) -> PathBuf {
        self.sandbox.images_dir.clone().unwrap_or_else(|| self.data_dir.join("images"))
    }

    /// The providers, with the operator's keys out of their variables.
    pub fn providers(&self) -> anyhow::Result<Vec<ProviderConfig>> {
        let mut filed = match &self.prices_file {
            Some(file) => {
                let text = std::fs::read_to_string(file).with_context(|| format!("cannot read {}", file.display()))?;
                read_operator(&text).with_context(|| format!("in {}", file.display()))?
            }
            None => BTreeMap::new(),
        };
        let providers = self
            .models
            .iter()
            .map(|(name, model)| ProviderConfig {
                name: name.clone(),
                dialect: model.dialect,
                base_url: model.base_url.clone(),
                operator_key: model
                    .api_key_env
                    .as_ref()
                    .and_then(|variable| std::env::var(variable).ok())
                    .filter(|key| !key.is_empty())
                    .map(SecretString::from),
                key_required: model.key_required,
                // Those of the section are set last, and so go first.
                prices: filed.remove(name).unwrap_or_default().into_iter().chain(model.prices.clone()).collect(),
            })
            .collect();
        if let Some(provider) = filed.keys().next() {
            bail!("prices_file has prices of {provider:?}, which is no [models.NAME]");
        }
        Ok(providers)
    }
}

#[cfg(test)]
mod tests {
    use toml::Table;

    use super::*;

    fn load_text(text: &str, environment: &[(&str, &str)]) -> anyhow::Result<Loaded> {
        let folder = tempfile::tempdir().expect("a folder");
        let file = folder.path().join("orchestra.toml");
        std::fs::write(&file, text).expect("written");
        let environment = environment.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned()));
        load(Some(&file), environment, Vec::new())
    }

    #[test]
    fn later_layers_go_over_earlier_ones_and_say_so() {
        let loaded = load_text(
            "listen = \"127.0.0.1:1\"\n[models.anthropic]\nbase_url = \"http://127.0.0.1:2\"\n",
            &[("ORCHESTRA_MODELS__ANTHROPIC__BASE_URL", "http://127.0.0.1:3"), ("ORCHESTRA_SANDBOX__PIDS", "64")],
        )
        .expect("loads");
        assert_eq!(loaded.config.listen, "127.0.0.1:1");
        assert_eq!(loaded.config.models["anthropic"].base_url, "http://127.0.0.1:3");
        assert_eq!(loaded.config.models["anthropic"].dialect, Dialect::Anthropic);
        assert_eq!(loaded.config.sandbox.pids, 64);
        let printed = loaded.print().expect("prints");
        assert!(printed.contains("ORCHESTRA_MODELS__ANTHROPIC__BASE_URL"), "{printed}");
        assert!(printed.contains("sandbox.cpus = 2.0  # default"), "{printed}");
    }

    #[test]
    fn a_path_from_here_is_one_from_everywhere() {
        let text = "data_dir = \"data\"\ntemplates_dir = \"./t\"\nprices_file = \"p.json\"\n\
                    [sandbox]\nimages_dir = \"i\"\n[images]\ndocker_config = \"d.json\"\n\
                    [forges.mine]\nkind = \"local\"\nroot = \"forge\"\n";
        let config = load_text(text, &[]).expect("loads").config;
        let here = std::env::current_dir().expect("a folder");
        assert_eq!(config.data_dir, here.join("data"));
        assert_eq!(config.templates_dir, Some(here.join("t")));
        assert_eq!(config.prices_file, Some(here.join("p.json")));
        assert_eq!(config.sandbox.images_dir, Some(here.join("i")));
        assert_eq!(config.images.docker_config, Some(here.join("d.json")));
        assert_eq!(config.forges["mine"].root, Some(here.join("forge")));
        let error = load_text("data_dir = \"\"", &[]).err().expect("refused");
        assert!(format!("{error:#}").contains("is no path"), "{error:#}");
    }

    #[test]
    fn an_unknown_key_names_the_nearest() {
        for (text, nearest) in [
            ("lisen = \"x\"", "listen"),
            ("[sandbox]\nmemroy = \"1GiB\"", "sandbox.memory"),
            ("[models.mine]\nbaseurl = \"x\"", "models.mine.base_url"),
        ] {
            let error = format!("{:#}", load_text(text, &[]).err().expect(text));
            assert!(error.contains(&format!("nearest known key is {nearest:?}")), "{error}");
        }
        let error = load_text("", &[("ORCHESTRA_SANDBOX__CPU", "1")]).err().expect("refused");
        assert!(format!("{error:#}").contains("sandbox.cpus"), "{error:#}");
    }

    #[test]
    fn a_value_that_does_not_do_is_refused_with_its_key() {
        for (text, word) in [
            ("[sandbox]\nmemory = \"2GB\"", "sandbox.memory"),
            ("[sandbox]\ntimeout = \"5\"", "sandbox.timeout"),
            ("[sandbox]\ncpus = 0.0", "sandbox.cpus"),
            ("store = \"oracle\"", "store"),
            ("trusted_proxies = [\"10.0.0.0/99\"]", "trusted_proxies"),
            ("default_forge = \"nowhere\"", "default_forge"),
            ("[branches]\ntemplate = \"x/{slog}-{shortid}\"", "{slug}"),
            ("[branches]\nbases = [\"[\"]", "branches.bases"),
            ("[teams.web.branches]\ntemplate = \"x/{slug}\"", "teams.web.branches.template"),
        ] {
            let error = format!("{:#}", load_text(text, &[]).err().expect(text));
            assert!(error.contains(word), "{error}");
        }
    }

    #[test]
    fn the_built_in_defaults_have_every_key_that_is_always_there() {
        let table = Table::try_from(Config::default()).expect("serialises");
        layers::check(&table, "").expect("every default is a known key");
    }
}
