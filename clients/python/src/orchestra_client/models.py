"""What the interface takes and answers. Made by generate.py from web/openapi.json: change that."""

from __future__ import annotations

from typing import Any, Literal, NotRequired, TypeAlias, TypedDict


ActorKindName: TypeAlias = "Literal['api-key', 'person', 'system']"
"""What kind of being acted."""


class AttemptsRequest(TypedDict):
    """How often a task is attempted by itself, when it fails for a reason that may pass."""
    attempts: NotRequired[int | None]
    """The most attempts, the first one counted."""
    workspace: NotRequired[WorkspaceName | None]


class AuditActor(TypedDict):
    """Who, and from where. What is not the caller's to see is null."""
    address: NotRequired[str | None]
    """From where."""
    id: str
    """The key's or the person's id."""
    kind: str
    """`api-key`, `person` or `system`."""
    name: NotRequired[str | None]
    """What it was called then."""
    userAgent: NotRequired[str | None]
    """With which program, by its own word."""


class AuditEntry(TypedDict):
    """One row."""
    about: NotRequired[str | None]
    """What it is about in a few words: a key's name, a budget's scope, the route that was refused."""
    actor: AuditActor
    """Who."""
    category: str
    """`task`, `act` or `refusal`."""
    count: int
    """How many acts of the same kind it stands for."""
    durationMs: NotRequired[int | None]
    """From the request to its end, in milliseconds."""
    failure: NotRequired[str | None]
    """Why the task failed: the stable code."""
    finishedAt: NotRequired[str | None]
    id: str
    """The task's id, or the event's."""
    kind: str
    """`task`, or what was done: `key-issued`, `budget-set`, `access-denied` …"""
    model: NotRequired[str | None]
    """With which model."""
    outcome: str
    """A task's status, `done`, or the code of a refusal."""
    position: int
    """The place of its event in the log."""
    project: NotRequired[str | None]
    pullRequests: list[str]
    repos: list[str]
    """On which repositories."""
    startedAt: NotRequired[str | None]
    stream: str
    """The stream of its event."""
    task: NotRequired[str | None]
    """The task that it concerns."""
    team: NotRequired[str | None]
    """Whose it is; null for what concerns no team."""
    time: str
    """When."""
    usage: NotRequired[AuditUsage | None]


class AuditKey(TypedDict):
    """The key that checkpoints are verified with."""
    algorithm: str
    """Always `Ed25519`."""
    keyId: str
    """The first 16 bytes of the key's SHA-256: what the server prints at its start."""
    publicKey: str
    """The key, 32 bytes."""


class AuditList(TypedDict):
    """A page of rows."""
    data: list[AuditEntry]
    """Newest first. May be shorter than `limit`, or empty, where there is more to look through."""
    nextCursor: NotRequired[str | None]
    """Pass it on as `cursor` for the next page; null when there is none."""


class AuditUsage(TypedDict):
    """What a task has used."""
    billableUsd: Usd
    cacheReadTokens: int
    cacheWriteTokens: int
    costUsd: Usd
    inputTokens: int
    outputTokens: int


class Bill(TypedDict):
    """A bill."""
    currency: str
    """`USD`."""
    customers: list[BillingCustomer]
    digest: NotRequired[str | None]
    """The SHA-256 of a closed month's lines, as it was written down when it was closed."""
    intact: NotRequired[bool | None]
    """Whether the lines still have that digest. `null` while the month is open, and on every page but the first."""
    lines: list[BillingLine]
    nextCursor: NotRequired[str | None]
    period: str
    plans: list[int]
    """The versions of the plan that it was priced with; 0 stands for none."""
    status: BillingStatus
    team: str
    through: NotRequired[int | None]
    """The place in the log up to which a closed month was taken in."""
    totals: BillingTotals
    """What it comes to; with `customer`, for that one."""


class BillPushRequest(TypedDict):
    """To whom a bill is sent."""
    webhook: str
    """A webhook of the team that wants `billing.invoice-ready`, or all of `billing.*`."""


BillingCustomer: TypeAlias = 'Any'
"""What a bill comes to for one customer."""


BillingLine: TypeAlias = 'Any'
"""One line of a bill."""


BillingLineKind: TypeAlias = "Literal['usage', 'adjustment', 'minimum']"
"""What a line is for."""


BillingOverride: TypeAlias = 'Any'
"""Other terms for a customer, a project, or a project of a customer."""


class BillingOverrideRequest(TypedDict):
    """Other terms for a customer, a project, or a project of a customer."""
    customer: NotRequired[str | None]
    markUpBasisPoints: NotRequired[int | None]
    minimumUsd: NotRequired[Usd | None]
    perMillionCacheReadTokensUsd: NotRequired[Usd | None]
    perMillionCacheWriteTokensUsd: NotRequired[Usd | None]
    perMillionInputTokensUsd: NotRequired[Usd | None]
    perMillionOutputTokensUsd: NotRequired[Usd | None]
    perMinuteUsd: NotRequired[Usd | None]
    perTaskUsd: NotRequired[Usd | None]
    project: NotRequired[str | None]


BillingPeriod: TypeAlias = 'Any'
"""A month in sums."""


class BillingPeriods(TypedDict):
    """Months, newest first."""
    data: list[BillingPeriod]


BillingPlan: TypeAlias = 'Any'
"""A plan."""


class BillingPlanRequest(TypedDict):
    """A plan as it is set. What is absent is not charged for; a plan charges for something."""
    currency: NotRequired[str | None]
    """`USD`."""
    effectiveFrom: str
    """The first civil day that it goes for, after every month that is closed."""
    markUpBasisPoints: NotRequired[int | None]
    """The provider's cost is passed on with this much on top, in hundredths of a per cent; absent: it is not passed on."""
    minimumUsd: NotRequired[Usd | None]
    overrides: NotRequired[list[BillingOverrideRequest] | None]
    """Who has other terms."""
    perMillionCacheReadTokensUsd: NotRequired[Usd | None]
    perMillionCacheWriteTokensUsd: NotRequired[Usd | None]
    perMillionInputTokensUsd: NotRequired[Usd | None]
    perMillionOutputTokensUsd: NotRequired[Usd | None]
    perMinuteUsd: NotRequired[Usd | None]
    perTaskUsd: NotRequired[Usd | None]


class BillingPlans(TypedDict):
    """The plans of a team."""
    closedThrough: NotRequired[str | None]
    """The last month that is closed: a plan begins after it."""
    team: str
    versions: list[BillingPlan]
    """Every plan that was set, the last one first. Of those that have begun on a day, the one that began last goes; before the first, the provider's cost is passed on as it is."""


class BillingQuantities(TypedDict):
    """What was used."""
    cacheReadTokens: int
    cacheWriteTokens: int
    costUsd: Usd
    """What the provider takes."""
    inputTokens: int
    outputTokens: int
    refundedUsd: Usd
    """What of such a cost was reversed."""
    sandboxMs: int
    tasks: int


BillingStatus: TypeAlias = "Literal['open', 'closing', 'closed']"
"""How far a month is."""


class BillingTerms(TypedDict):
    """Prices. What is absent is not charged for."""
    markUpBasisPoints: NotRequired[int | None]
    """The provider's cost is passed on with this much on top, in hundredths of a per cent; absent: it is not passed on."""
    minimumUsd: Usd
    """The least that a month comes to for a customer for whom anything was done."""
    perMillionCacheReadTokensUsd: Usd
    perMillionCacheWriteTokensUsd: Usd
    perMillionInputTokensUsd: Usd
    perMillionOutputTokensUsd: Usd
    perMinuteUsd: Usd
    """For each minute that a sandbox runs, to the millisecond."""
    perTaskUsd: Usd


BillingTotals: TypeAlias = 'Any'
"""What a bill comes to."""


class Budget(TypedDict):
    """A scope's budget and where it stands."""
    perDay: StandingView
    perMonth: StandingView
    perTask: CapView
    """What one task may cost, all its attempts together."""
    scope: str
    """`team:platform`, `project:platform/infra`, `environment:platform/infra/prod`, `task-type:platform/upgrade`."""
    timeZone: str
    """Whose midnight begins a day."""


class BudgetList(TypedDict):
    """Budgets."""
    data: list[Budget]


class BudgetRequest(TypedDict):
    """What a task may cost."""
    maxTokens: NotRequired[int | None]
    maxUsd: NotRequired[Usd | None]


class BudgetView(TypedDict):
    """What a task may cost."""
    maxTokens: NotRequired[int | None]
    maxUsd: NotRequired[Usd | None]


class Campaign(TypedDict):
    """A campaign."""
    budget: BudgetView
    """What all tasks together may cost."""
    children: NotRequired[list[CampaignChild] | None]
    """The repositories with their tasks, where the campaign is read alone."""
    concurrency: int
    contentErasedAt: NotRequired[str | None]
    """When its words were erased."""
    createdAt: str
    customer: NotRequired[str | None]
    environment: NotRequired[str | None]
    finishedAt: NotRequired[str | None]
    """When its last task ended."""
    harness: HarnessName
    id: str
    links: CampaignLinks
    model: str
    name: str
    progress: CampaignProgress
    project: NotRequired[str | None]
    pullRequestsPerHour: NotRequired[int | None]
    reason: str
    """Why it stands there."""
    status: CampaignStatusName
    stopAfterFailures: NotRequired[int | None]
    """A number of failed tasks."""
    task: str
    """What is to be done, everywhere."""
    taskBudget: BudgetView
    """What each task may cost."""
    taskType: NotRequired[str | None]
    team: str
    usage: CampaignUsage


class CampaignChild(TypedDict):
    """One repository of a campaign, and its task."""
    base: NotRequired[str | None]
    branch: str
    costUsd: Usd
    failure: NotRequired[str | None]
    """Why it failed: a code."""
    index: int
    """Its place in the list, counted from 0."""
    pullRequests: list[PullRequestView]
    repo: str
    """`forge:owner/name`."""
    status: str
    """The task's status; `waiting` before it is begun or begun again, `cancelled` where the campaign is over first."""
    task: NotRequired[str | None]
    """Its task; `null` before it is begun."""


class CampaignLinks(TypedDict):
    """Where to go from here."""
    page: str
    self: str
    tasks: str


class CampaignList(TypedDict):
    """A page of campaigns."""
    data: list[Campaign]
    """Newest first."""
    nextCursor: NotRequired[str | None]
    """Pass it on as `cursor` for the next page; `null` when there is none."""


class CampaignProgress(TypedDict):
    """How many tasks stand where."""
    cancelled: int
    """Cancelled, or never begun."""
    failed: int
    running: int
    """Begun."""
    succeeded: int
    total: int
    """Repositories."""
    waiting: int
    """Not begun, or to be begun again."""


class CampaignRequest(TypedDict):
    """What a caller asks for: a task, on many repositories."""
    base: NotRequired[str | None]
    """The branch to start from, where a repository has none of its own."""
    branch: NotRequired[str | None]
    """The branch to push to, where a repository has none of its own."""
    budget: NotRequired[BudgetRequest | None]
    command: NotRequired[list[str] | None]
    """Program and arguments, with the harness `command`."""
    concurrency: NotRequired[int | None]
    """Tasks that may run at once."""
    credentials: NotRequired[CredentialsRequest | None]
    customer: NotRequired[str | None]
    egress: NotRequired[list[str] | None]
    """The hosts that the sandbox may connect to: names, `*.example.com`, either with a port, and `package-registries`. What the server allows when absent; none when empty."""
    environment: NotRequired[str | None]
    harness: NotRequired[HarnessName | None]
    image: NotRequired[str | None]
    metadata: NotRequired[Metadata | None]
    model: str
    """The model."""
    name: str
    """What you call it."""
    project: NotRequired[str | None]
    pullRequest: NotRequired[PullRequestRequest | None]
    pullRequestsPerHour: NotRequired[int | None]
    """Pull requests that may be opened within any sixty minutes."""
    repos: list[RepoRequest]
    """In the order in which they are begun. Each is `owner/name`, `forge:owner/name`, a URL, or an object."""
    retry: NotRequired[AttemptsRequest | None]
    stopAfterFailures: NotRequired[float | None]
    """With so many failed tasks, or such a part of all (0.1), it is paused."""
    task: str
    """What is to be done, everywhere."""
    taskBudget: NotRequired[BudgetRequest | None]
    taskType: NotRequired[str | None]
    team: NotRequired[str | None]
    """Whose campaign it is; a team's key may leave it out."""
    timeoutSeconds: NotRequired[int | None]


CampaignStatusName: TypeAlias = "Literal['running', 'paused', 'finished', 'cancelled']"
"""Where a campaign stands."""


class CampaignUsage(TypedDict):
    """What a campaign has used."""
    billableUsd: Usd
    """What the team is charged."""
    costUsd: Usd
    """What the providers charge."""
    reservedUsd: NotRequired[Usd | None]
    tokens: NotRequired[int | None]
    """Input and output tokens together, where the campaign is read alone."""


class CancelRequest(TypedDict):
    """Why it is cancelled."""
    reason: NotRequired[str | None]


class CapRequest(TypedDict):
    """A cap. 0 lets nothing through."""
    maxTokens: NotRequired[int | None]
    maxUsd: NotRequired[Usd | None]


class CapView(TypedDict):
    """A cap. Absent means no limit of that kind."""
    maxTokens: NotRequired[int | None]
    maxUsd: NotRequired[Usd | None]


class CheckpointList(TypedDict):
    """A page of checkpoints."""
    data: list[CheckpointView]
    """Newest first."""
    nextCursor: NotRequired[str | None]
    """Pass it on as `cursor` for the next page; null when there is none."""


class CheckpointView(TypedDict):
    """A signed statement of how far the log had come. Bytes are in lower-case hexadecimal."""
    globalLink: str
    """That event's link."""
    keyId: str
    logId: str
    """The link of the log's first event."""
    position: int
    """The last event that the statement is about."""
    publicKey: str
    signature: str
    """Ed25519 over the statement's bytes; docs/security.md has their layout."""
    time: str


class CredentialsRequest(TypedDict):
    """Secrets, for this task only. Held in memory, never stored."""
    git: NotRequired[GitCredential | None]
    model: NotRequired[ModelCredential | None]


class Delivery(TypedDict):
    """What became of one message."""
    attempts: int
    error: NotRequired[str | None]
    """What went wrong, if it did not: `unresolvable`, `forbidden-address`, `unreachable`, `tls`, `timeout`, `broken`, `bad-answer` or `unsendable`."""
    firstAttemptAt: str
    lastAttemptAt: str
    message: str
    """The `webhook-id` of the message: the same in every attempt."""
    milliseconds: int
    """How long the last answer took."""
    nextAttemptAt: NotRequired[str | None]
    outcome: str
    """`delivered`, `retrying`, `given-up`, or `skipped`: it was to be tried again, and the webhook was for something else by then."""
    position: NotRequired[int | None]
    """The event's position in the log; `null` for a test."""
    status: NotRequired[int | None]
    """What the receiver answered, if it did."""
    type: str


class DeliveryList(TypedDict):
    """A page of deliveries."""
    data: list[Delivery]
    """Those that were first tried last first."""
    nextCursor: NotRequired[str | None]
    """Pass it on as `cursor` for the next page; `null` when there is none."""


class Event(TypedDict):
    """One event in its envelope."""
    actor: EventActor
    causation: NotRequired[str | None]
    correlation: NotRequired[str | None]
    data: dict[str, Any]
    """What happened; its shape belongs to the type and the schema."""
    erased: NotRequired[bool | None]
    """The words in it were erased: placeholders stand where they were. Absent otherwise."""
    id: str
    position: int
    revision: int
    schema: int
    stream: str
    time: str
    type: str
    """What happened, as a stable name."""


class EventActor(TypedDict):
    """Who caused an event."""
    id: str
    kind: ActorKindName
    team: NotRequired[str | None]


class EventList(TypedDict):
    """A page of events."""
    data: list[Event]
    """Oldest first."""
    nextCursor: NotRequired[str | None]
    """Pass it on as `after` for the next page; `null` when there is none."""


class Exhausted(TypedDict):
    """The cap that a model call does not fit under: its dollars, or its tokens."""
    capTokens: NotRequired[int | None]
    capUsd: NotRequired[Usd | None]
    period: str
    """task, day, month or campaign."""
    reservedTokens: NotRequired[int | None]
    reservedUsd: NotRequired[Usd | None]
    resetsAt: NotRequired[str | None]
    """When the cap is whole again; absent for a task's and a campaign's, which never are."""
    scope: str
    """Whose cap: `team:platform`, `project:platform/infra`, … or `task:task_…` for the task's own, `campaign:campaign_…` for the one that the tasks of a campaign share."""
    spentTokens: NotRequired[int | None]
    spentUsd: NotRequired[Usd | None]


FailureCode: TypeAlias = "Literal['budget-exceeded', 'model-rate-limited', 'model-overloaded', 'model-unavailable', 'model-timeout', 'model-truncated', 'model-auth', 'network-dropped', 'sandbox-start-failed', 'sandbox-out-of-memory', 'sandbox-disk-full', 'sandbox-timeout', 'clone-failed', 'repo-not-found', 'git-auth', 'git-token-scope', 'branch-protected', 'branch-policy', 'push-rejected', 'push-conflict', 'nothing-to-push', 'pull-request-failed', 'cancelled', 'harness-failed', 'setup-failed', 'internal']"
"""The stable codes of tasks that failed. Each has a page at `/docs/errors/`."""


class FailureView(TypedDict):
    """Why a task failed, or why it waits or retries."""
    attempt: int
    """In which attempt."""
    budget: NotRequired[Exhausted | None]
    code: FailureCode
    hint: str
    """What to do next."""
    message: str
    """What happened."""
    retryable: bool
    """Whether doing the same again may succeed."""


class Field(TypedDict):
    """One field that does not do."""
    detail: str
    """What is wrong with it and what would be right."""
    pointer: str
    """JSON pointer to the field (RFC 6901); `?name` for a query parameter."""


class GitCredential(TypedDict):
    """The forge's token."""
    token: str


HarnessName: TypeAlias = "Literal['builtin', 'claude-code', 'codex', 'opencode', 'command']"
"""The agents there are."""


IssuedKey: TypeAlias = 'Any'
"""A key with its text, which is shown this once."""


class Key(TypedDict):
    """A key. Neither its text nor the hash of it is in it."""
    bounds: KeyBounds
    createdAt: str
    createdBy: str
    """The id of who issued it."""
    environment: str
    """The environment in its visible prefix."""
    expiresAt: NotRequired[str | None]
    id: str
    lastUsedAt: NotRequired[str | None]
    """To the hour: a busy key's use is noted once in an hour."""
    lastUsedFrom: NotRequired[str | None]
    """The address it was last used from."""
    limits: KeyLimits
    name: str
    previousUntil: NotRequired[str | None]
    """Until when the text before the last rotation works, where it still does."""
    revokedAt: NotRequired[str | None]
    rotatedAt: NotRequired[str | None]
    scopes: list[str]
    status: KeyStatus
    team: NotRequired[str | None]
    """The team it acts for; `null` for an operator's key."""


class KeyBounds(TypedDict):
    """What a key is good for within its team. An empty list bounds nothing."""
    environments: list[str]
    models: list[str]
    """Patterns of the names of models."""
    networks: list[str]
    """Networks such as `10.0.0.0/8`."""
    projects: list[str]
    repos: list[str]
    """Patterns of `forge:owner/name`, in which `*` stands for any characters."""
    taskTypes: list[str]


class KeyBoundsRequest(TypedDict):
    """What a key is good for within its team. An absent or empty list bounds nothing of its own."""
    environments: NotRequired[list[str] | None]
    models: NotRequired[list[str] | None]
    """Patterns of the names that callers give models."""
    networks: NotRequired[list[str] | None]
    """Networks that it may be used from, such as `10.0.0.0/8`, or addresses."""
    projects: NotRequired[list[str] | None]
    repos: NotRequired[list[str] | None]
    """Patterns of `forge:owner/name`, in which `*` stands for any characters."""
    taskTypes: NotRequired[list[str] | None]


class KeyLimits(TypedDict):
    """How much may be asked with a key at once; `null`: as the server's configuration says."""
    burst: NotRequired[int | None]
    concurrentTasks: NotRequired[int | None]
    requestsPerMinute: NotRequired[int | None]


class KeyLimitsRequest(TypedDict):
    """How much may be asked with a key at once."""
    burst: NotRequired[int | None]
    """Requests at once; a minute's worth when absent."""
    concurrentTasks: NotRequired[int | None]
    """Tasks created with it that are not over."""
    requestsPerMinute: NotRequired[int | None]
    """Requests per minute, on average."""


class KeyList(TypedDict):
    """A page of keys."""
    data: list[Key]
    """Newest first."""
    nextCursor: NotRequired[str | None]
    """Pass it on as `cursor` for the next page; `null` when there is none."""


class KeyRequest(TypedDict):
    """A key that is to be issued. What is left out is as the caller's own."""
    bounds: NotRequired[KeyBoundsRequest | None]
    environment: NotRequired[str | None]
    """Stands in its visible prefix, so that a production key is seen to be one; `live` when absent."""
    expiresAt: NotRequired[str | None]
    """From when on it is worth nothing; in the future."""
    limits: NotRequired[KeyLimitsRequest | None]
    name: str
    """What you call it."""
    scopes: list[str]
    """What it may do. `campaigns:*` stands for all that begin so."""
    team: NotRequired[str | None]
    """The team it acts for. Without one it is an operator's, with the scope `admin`."""


KeyStatus: TypeAlias = "Literal['active', 'expired', 'revoked']"
"""What a key is worth."""


class Links(TypedDict):
    """Where to go from here."""
    diff: str
    events: str
    page: str
    self: str


class MessageRequest(TypedDict):
    """Words to the running agent."""
    message: str


Metadata: TypeAlias = 'dict[str, str | float | bool | None]'
"""Free pairs: at most 50 entries of texts, numbers, true, false or null"""


class ModelCredential(TypedDict):
    """The model provider's key."""
    apiKey: str


NewWebhook: TypeAlias = 'Any'
"""A webhook that was made, with its secret."""


class Problem(TypedDict):
    """How a problem looks outside."""
    budget: NotRequired[Exhausted | None]
    code: ProblemCode
    detail: str
    """What happened, and what to do next."""
    errors: NotRequired[list[Field]]
    """The fields that do not do."""
    status: int
    """The HTTP status."""
    title: str
    """What it means in a few words."""
    type: str
    """The page about this code."""


ProblemCode: TypeAlias = "Literal['invalid-request', 'invalid-query', 'invalid-json', 'unsupported-media-type', 'body-too-large', 'body-incomplete', 'unauthenticated', 'forbidden', 'address-not-allowed', 'rate-limited', 'too-many-tasks', 'cross-site-request', 'not-found', 'method-not-allowed', 'budget-exceeded', 'conflict', 'idempotency-key-reused', 'request-in-progress', 'overloaded', 'lagging', 'internal-error']"
"""The stable codes of refusals. Each has a page at `/docs/errors/`."""


class PullRequestRequest(TypedDict):
    """What the pull requests are to be like. What is absent is made from the server's templates; what a forge does not have is left out, and an event says so."""
    body: NotRequired[str | None]
    """Markdown."""
    draft: NotRequired[bool | None]
    """Whether they begin as drafts."""
    labels: NotRequired[list[str] | None]
    reviewers: NotRequired[list[str] | None]
    """Who is asked to look at them, by the names that the forge knows them by."""
    title: NotRequired[str | None]
    """One line."""


class PullRequestView(TypedDict):
    """A pull request."""
    number: int
    repo: str
    url: str


class Readiness(TypedDict):
    """How far a node that is ready has read."""
    head: int
    """The position of the last event."""
    lag: int
    """How many positions they are behind."""
    readModels: int
    """The position up to which the read models have it."""
    skippedEvents: int
    """Events that they could not read."""
    status: str
    """`ready`."""


class RepoBranchesRequest(TypedDict):
    """A repository with branches of its own."""
    base: NotRequired[str | None]
    """The branch to start from; the request's, or the repository's default branch when absent."""
    branch: NotRequired[str | None]
    """The branch to push to; the request's, or one made from the task's words when absent."""
    repo: str
    """`owner/name`, `forge:owner/name` or a URL."""


RepoRequest: TypeAlias = 'str | RepoBranchesRequest'
"""A repository of several: its name alone, or an object."""


class RetryRequest(TypedDict):
    """What comes along with a new attempt."""
    credentials: NotRequired[CredentialsRequest | None]


class RotateRequest(TypedDict):
    """How a key is given a new text."""
    overlapSeconds: NotRequired[int | None]
    """How long the text it has now works on; an hour when absent."""


class SandboxLimits(TypedDict):
    """What a sandbox may use."""
    cpus: float
    """Processors' worth of time."""
    diskBytes: int
    memoryBytes: int
    pids: int


class SandboxUsage(TypedDict):
    """What the latest attempt's sandbox used when that was last written down."""
    cpuMs: int
    """Processor time so far, in milliseconds."""
    cpusUsed: NotRequired[float | None]
    """Processors in use on average since the sample before."""
    diskBytes: int
    egressReceivedBytes: NotRequired[int | None]
    """Had from hosts outside; absent where nobody counted."""
    egressSentBytes: NotRequired[int | None]
    """Sent to hosts outside; absent where nobody counted."""
    limits: SandboxLimits
    memoryBytes: int
    memoryPeakBytes: int
    """The most memory at once; 0 where the host's kernel does not say."""
    oomKills: int
    """Processes that were killed for memory."""
    pids: int
    """Processes and threads."""


class ScopeBudgetRequest(TypedDict):
    """The caps of a scope; every part is optional."""
    perDay: NotRequired[CapRequest | None]
    perMonth: NotRequired[CapRequest | None]
    perTask: NotRequired[CapRequest | None]
    timeZone: NotRequired[str | None]
    """Whose midnight begins a day, such as `Europe/Zurich`; the team's when absent, of a team UTC."""


class StandingView(TypedDict):
    """A cap over a time, and where it stands."""
    maxTokens: NotRequired[int | None]
    maxUsd: NotRequired[Usd | None]
    reservedTokens: int
    reservedUsd: Usd
    """Set aside for calls that are under way."""
    resetsAt: NotRequired[str | None]
    """When the next period begins."""
    spentTokens: int
    spentUsd: Usd
    """Settled in the current period."""


Status: TypeAlias = "Literal['queued', 'preparing', 'running', 'awaiting-credentials', 'retrying', 'succeeded', 'failed', 'cancelled']"
"""Where a task stands."""


class Task(TypedDict):
    """A task."""
    attempt: int
    """Counted from 1; 0 before the first."""
    base: NotRequired[str | None]
    branch: str
    budget: BudgetView
    campaign: NotRequired[str | None]
    commits: list[str]
    contentErasedAt: NotRequired[str | None]
    """When its words were erased: what was asked for, said and written."""
    createdAt: str
    customer: NotRequired[str | None]
    egress: list[str]
    """The hosts that its sandbox may connect to."""
    environment: NotRequired[str | None]
    failure: NotRequired[FailureView | None]
    finishedAt: NotRequired[str | None]
    harness: HarnessName
    id: str
    links: Links
    metadata: dict[str, Any]
    model: str
    project: NotRequired[str | None]
    pullRequests: list[PullRequestView]
    reason: str
    """What it is doing right now, or why it stands there."""
    repo: str
    """`forge:owner/name`."""
    sandboxUsage: NotRequired[SandboxUsage | None]
    startedAt: NotRequired[str | None]
    status: Status
    task: str
    """What is to be done."""
    taskType: NotRequired[str | None]
    team: str
    usage: UsageView


class TaskList(TypedDict):
    """A page of tasks."""
    data: list[Task]
    """Newest first."""
    nextCursor: NotRequired[str | None]
    """Pass it on as `cursor` for the next page; `null` when there is none."""


class TaskRequest(TypedDict):
    """What a caller asks for."""
    base: NotRequired[str | None]
    """The branch to start from; the repository's default branch when absent."""
    branch: NotRequired[str | None]
    """The branch to push to; made from the task's words when absent."""
    budget: NotRequired[BudgetRequest | None]
    command: NotRequired[list[str] | None]
    """Program and arguments, with the harness `command`."""
    credentials: NotRequired[CredentialsRequest | None]
    customer: NotRequired[str | None]
    egress: NotRequired[list[str] | None]
    """The hosts that the sandbox may connect to: names, `*.example.com`, either with a port, and `package-registries`. What the server allows when absent; none when empty."""
    environment: NotRequired[str | None]
    harness: NotRequired[HarnessName | None]
    image: NotRequired[str | None]
    metadata: NotRequired[Metadata | None]
    model: str
    """The model."""
    project: NotRequired[str | None]
    pullRequest: NotRequired[PullRequestRequest | None]
    repo: NotRequired[str | None]
    """`owner/name` on the default forge, `forge:owner/name`, or a full URL. Either this or `repos` is required."""
    repos: NotRequired[list[RepoRequest] | None]
    """Several repositories, each with a checkout of its own in one workspace, and a pull request of its own."""
    retry: NotRequired[AttemptsRequest | None]
    task: str
    """What is to be done."""
    taskType: NotRequired[str | None]
    team: NotRequired[str | None]
    """Whose task it is; a team's key may leave it out."""
    timeoutSeconds: NotRequired[int | None]


class Usage(TypedDict):
    """What was used. Each group also holds what it is grouped by."""
    groups: list[UsageLine]
    total: UsageLine


class UsageLine(TypedDict):
    """One line of a report."""
    billableUsd: Usd
    cacheReadTokens: int
    cacheWriteTokens: int
    costUsd: Usd
    customer: NotRequired[str | None]
    day: NotRequired[str | None]
    environment: NotRequired[str | None]
    inputTokens: int
    model: NotRequired[str | None]
    month: NotRequired[str | None]
    outputTokens: int
    project: NotRequired[str | None]
    refundedUsd: Usd
    sandboxMs: int
    taskType: NotRequired[str | None]
    tasks: int
    team: NotRequired[str | None]


class UsageView(TypedDict):
    """What a task has used."""
    billableUsd: Usd
    """What the team is charged."""
    cacheReadTokens: int
    cacheWriteTokens: int
    costUsd: Usd
    """What the provider charges."""
    inputTokens: int
    outputTokens: int


Usd: TypeAlias = 'float'
"""Dollars, a decimal with up to nine places; exact in the text of the JSON"""


class Webhook(TypedDict):
    """A webhook. Its secret is shown when it is made and when it is rotated, and never else."""
    createdAt: str
    delivered: int
    """Attempts that were taken."""
    description: NotRequired[str | None]
    disabledReason: NotRequired[str | None]
    """`gone`, `failures` or `by-hand`."""
    enabled: bool
    environments: list[str]
    """The same for environments."""
    events: list[str]
    """Which of them: types such as `task.succeeded`, `task.*`, or `*`."""
    failingSince: NotRequired[str | None]
    givenUp: int
    """Messages that were given up."""
    id: str
    lastDeliveredAt: NotRequired[str | None]
    previousSecretUntil: NotRequired[str | None]
    """Until then messages are signed with the secret before, too."""
    projects: list[str]
    """Only those of tasks and campaigns of these projects; empty: of all."""
    secretVersion: int
    """How often its secret was made anew, plus one."""
    team: NotRequired[str | None]
    """The team whose events it is told; `null`: those of all."""
    through: int
    """What it wants of the log up to this position was delivered, was given up or is being retried."""
    url: str
    """Where they are sent."""


class WebhookChange(TypedDict):
    """What is to be different; what is absent stays. The team stays in any case."""
    description: NotRequired[str | None]
    enabled: NotRequired[bool | None]
    """`false` sends nothing any more, `true` goes on where it ended."""
    environments: NotRequired[list[str] | None]
    events: NotRequired[list[str] | None]
    projects: NotRequired[list[str] | None]
    url: NotRequired[str | None]


class WebhookList(TypedDict):
    """A page of webhooks."""
    data: list[Webhook]
    """Newest first."""
    nextCursor: NotRequired[str | None]
    """Pass it on as `cursor` for the next page; `null` when there is none."""


WebhookReplayRequest = TypedDict(
    "WebhookReplayRequest",
    {
        'from': 'NotRequired[int | None]',
        'message': 'NotRequired[str | None]',
        'to': 'NotRequired[int | None]',
    },
)
"""What is sent again: one message, or all that is wanted of a part of the log."""


class WebhookRequest(TypedDict):
    """What a webhook is for."""
    description: NotRequired[str | None]
    environments: NotRequired[list[str] | None]
    """The same for environments."""
    events: list[str]
    """Which of them: types such as `task.succeeded`, `task.*`, or `*`, which leaves out keys, sessions, requests and refused ones, checkpoints and webhooks."""
    projects: NotRequired[list[str] | None]
    """Only those of tasks and campaigns of these projects."""
    team: NotRequired[str | None]
    """Whose events; a team's key may leave it out. Absent with an operator's key: those of all."""
    url: str
    """Over TLS, to a name that leads into the open internet; or what the operator has opened besides."""


class WebhookSecret(TypedDict):
    """A new secret."""
    previousSecretUntil: NotRequired[str | None]
    """Until then they are signed with the one before, too."""
    secret: str | None
    """What messages are signed with from now on. It is shown this once: `null` in the answer to a repeat of the request."""


class WebhookSecretRequest(TypedDict):
    """How a secret is made anew."""
    overlapSeconds: NotRequired[int | None]
    """How long messages are signed with both secrets; a day when absent."""


WorkspaceName: TypeAlias = "Literal['fresh', 'same']"
"""What a further attempt begins with."""
