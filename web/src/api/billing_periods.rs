//! Bills: months, what stands in them, and their lines as JSON or CSV.

use std::sync::Arc;

use actix_web::http::header;
use actix_web::web::Bytes;
use actix_web::{HttpRequest, HttpResponse, web};
use futures_util::future::LocalBoxFuture;
use futures_util::stream;
use orchestra_events::WebhookId;
use orchestra_events::billing::event::{NumberedLine, Pushed};
use orchestra_events::billing::{Billing, Month, Quantities, Totals};
use orchestra_events::key::Scope;
use orchestra_events::projections::{Bill, LineCursor, LineQuery, PeriodSums};
use orchestra_events::webhook::Owner;
use serde::Serialize;
use utoipa::ToSchema;

use super::billing::team_of;
use super::csv::field;
use super::fields::{Faults, Object};
use super::query::Parameters;
use super::repeat::Subject;
use super::resource::Usd;
use super::{body, webhooks};
use crate::App;
use crate::auth::Caller;
use crate::problem::{Code, Field, Problem, ProblemBody};

/// Lines on one page unless a caller asks for fewer or more.
pub const DEFAULT_LINES: usize = 1_000;
/// Most lines on one page. The CSV has all of them.
pub const MAX_LINES: usize = 10_000;

/// How far a month is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, ToSchema)]
#[serde(rename_all = "kebab-case")]
#[schema(as = BillingStatus)]
pub enum StatusView {
    /// What is used counts here.
    Open,
    /// What comes now is an adjustment on the next bill; the lines are being written down.
    Closing,
    /// It stays as it is.
    Closed,
}

impl StatusView {
    /// How far a month is.
    pub fn of(billing: &Billing, period: Month) -> Self {
        if billing.closed.contains_key(&period) {
            Self::Closed
        } else if billing.closing.is_some_and(|closing| closing.period == period) {
            Self::Closing
        } else {
            Self::Open
        }
    }
}

/// What was used.
#[derive(Debug, Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
#[schema(as = BillingQuantities)]
pub struct QuantitiesView {
    tasks: u64,
    input_tokens: u64,
    output_tokens: u64,
    cache_read_tokens: u64,
    cache_write_tokens: u64,
    sandbox_ms: u64,
    /// What the provider takes.
    cost_usd: Usd,
    /// What of such a cost was reversed.
    refunded_usd: Usd,
}

impl From<&Quantities> for QuantitiesView {
    fn from(of: &Quantities) -> Self {
        Self {
            tasks: of.tasks,
            input_tokens: of.tokens.input,
            output_tokens: of.tokens.output,
            cache_read_tokens: of.tokens.cache_read,
            cache_write_tokens: of.tokens.cache_write,
            sandbox_ms: of.sandbox_ms,
            cost_usd: Usd(of.cost_nano_usd),
            refunded_usd: Usd(of.refunded_nano_usd),
        }
    }
}

/// A month in sums.
#[derive(Debug, Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
#[schema(as = BillingPeriod)]
pub struct PeriodView {
    team: String,
    /// `2026-11`.
    period: String,
    status: StatusView,
    /// How many lines there are.
    lines: u64,
    #[serde(flatten)]
    quantities: QuantitiesView,
    /// What it comes to; what is missing to a least amount is added when it is closed.
    billable_usd: Usd,
    /// The place in the log up to which a closed month was taken in.
    through: Option<u64>,
    /// The SHA-256 of a closed month's lines.
    digest: Option<String>,
    /// The webhooks that the bill was sent to.
    pushed_to: Vec<String>,
}

impl PeriodView {
    fn new(team: &str, billing: &Billing, sums: &PeriodSums) -> Self {
        let closed = billing.closed.get(&sums.period);
        let pushed = billing.pushed.iter().filter(|pushed| pushed.period == sums.period);
        let (lines, quantities, billable) = match closed {
            Some(closed) => {
                let totals = &closed.totals;
                (u64::from(totals.lines), &totals.quantities, totals.billable_nano_usd)
            }
            None => (sums.lines, &sums.quantities, sums.billable),
        };
        Self {
            team: team.to_owned(),
            period: sums.period.to_string(),
            status: StatusView::of(billing, sums.period),
            lines,
            quantities: quantities.into(),
            billable_usd: Usd(billable),
            through: closed.map(|closed| closed.through.0),
            digest: closed.map(|closed| closed.digest.clone()),
            pushed_to: pushed.map(|pushed| pushed.endpoint.to_string()).collect(),
        }
    }
}

/// Months, newest first.
#[derive(Debug, Serialize, ToSchema)]
#[schema(as = BillingPeriods)]
pub struct PeriodList {
    data: Vec<PeriodView>,
}

/// What a bill comes to.
#[derive(Debug, Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
#[schema(as = BillingTotals)]
pub struct TotalsView {
    /// How many lines there are.
    lines: u32,
    #[serde(flatten)]
    quantities: QuantitiesView,
    /// The lines of the month itself.
    usage_usd: Usd,
    /// What came after an earlier month was closed.
    adjustments_usd: Usd,
    /// What was missing to the least that a month comes to.
    minimum_usd: Usd,
    /// The sum of the three.
    billable_usd: Usd,
}

impl From<&Totals> for TotalsView {
    fn from(totals: &Totals) -> Self {
        Self {
            lines: totals.lines,
            quantities: (&totals.quantities).into(),
            usage_usd: Usd(totals.usage_nano_usd),
            adjustments_usd: Usd(totals.adjustments_nano_usd),
            minimum_usd: Usd(totals.minimum_nano_usd),
            billable_usd: Usd(totals.billable_nano_usd),
        }
    }
}

/// What a bill comes to for one customer.
#[derive(Debug, Serialize, ToSchema)]
#[schema(as = BillingCustomer)]
pub struct CustomerView {
    /// `null`: what was done for none.
    customer: Option<String>,
    #[serde(flatten)]
    totals: TotalsView,
}

/// One line of a bill.
#[derive(Debug, Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
#[schema(as = BillingLine)]
pub struct LineView {
    /// Counted from 1; a closed month's lines keep theirs.
    number: u32,
    /// The name under which the line is sent, the same every time: `team/2026-10/17`.
    idempotency_key: String,
    /// `usage`, `adjustment` or `minimum`.
    #[schema(value_type = LineKindView)]
    kind: &'static str,
    /// The civil day that was recorded with it.
    #[schema(format = "date")]
    day: String,
    /// The month that an adjustment corrects.
    corrects: Option<String>,
    customer: Option<String>,
    project: Option<String>,
    environment: Option<String>,
    task_type: Option<String>,
    model: Option<String>,
    #[serde(flatten)]
    quantities: QuantitiesView,
    /// What it comes to: negative where a refund is larger than what was charged on the same line.
    billable_usd: Usd,
}

/// What a line is for.
#[derive(Debug, Serialize, ToSchema)]
#[serde(rename_all = "kebab-case")]
#[schema(as = BillingLineKind)]
#[allow(dead_code, reason = "described, never built")]
pub enum LineKindView {
    /// What was used in the month.
    Usage,
    /// What came after an earlier month was closed.
    Adjustment,
    /// What was missing to a least amount.
    Minimum,
}

impl From<NumberedLine> for LineView {
    fn from(NumberedLine { number, idempotency_key, line }: NumberedLine) -> Self {
        Self {
            number,
            idempotency_key,
            kind: line.kind.as_str(),
            day: line.day.to_string(),
            corrects: line.corrects.map(|month| month.to_string()),
            quantities: (&line.quantities).into(),
            customer: line.customer,
            project: line.project,
            environment: line.environment,
            task_type: line.task_type,
            model: line.model,
            billable_usd: Usd(line.billable_nano_usd),
        }
    }
}

/// A bill.
#[derive(Debug, Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
#[schema(as = Bill)]
pub struct BillView {
    team: String,
    period: String,
    status: StatusView,
    /// `USD`.
    currency: &'static str,
    /// The versions of the plan that it was priced with; 0 stands for none.
    plans: Vec<u32>,
    /// What it comes to; with `customer`, for that one.
    totals: TotalsView,
    customers: Vec<CustomerView>,
    lines: Vec<LineView>,
    /// The place in the log up to which a closed month was taken in.
    through: Option<u64>,
    /// The SHA-256 of a closed month's lines, as it was written down when it was closed.
    digest: Option<String>,
    /// Whether the lines still have that digest. `null` while the month is open, and on every page but the first.
    intact: Option<bool>,
    next_cursor: Option<String>,
}

/// A month, or the answer that there is none of that name.
fn month(text: &str) -> Result<Month, Problem> {
    text.parse().map_err(|error| Problem::new(Code::NotFound, format!("There is no such month: {error}.")))
}

/// What a bill is sent as.
const SENT_AS: [&str; 2] = ["billing.invoice-ready", "billing.period-closed"];

/// The months of a team.
#[utoipa::path(get, path = "/v1/billing/periods", tag = "billing", operation_id = "listBillingPeriods",
    params(("team" = Option<String>, Query, description = "The key's own team when absent; an operator names one")),
    responses((status = 200, description = "The months in which anything was used, newest first", body = PeriodList),
        (status = 400, description = "Parameters that do not do", body = ProblemBody, content_type = "application/problem+json"),
        (status = 404, description = "No such team, or another one", body = ProblemBody, content_type = "application/problem+json")))]
pub async fn list(app: web::Data<App>, caller: Caller, request: HttpRequest) -> Result<HttpResponse, Problem> {
    let mut query = Parameters::of(&request)?;
    let asked = query.text("team");
    query.finish()?;
    let team = team_of(&caller, asked)?;
    app.caught_up().await?;
    let billing = app.read.billing(team.clone()).await?;
    let periods = app.read.billing_periods(team.clone()).await?;
    let data = periods.iter().map(|sums| PeriodView::new(&team, &billing, sums)).collect();
    Ok(HttpResponse::Ok().json(PeriodList { data }))
}

/// The columns of the CSV, by the names that the JSON has for them.
const COLUMNS: &str = "number,idempotencyKey,kind,day,corrects,customer,project,environment,taskType,model,tasks,\
                       inputTokens,outputTokens,cacheReadTokens,cacheWriteTokens,sandboxMs,costUsd,refundedUsd,\
                       billableUsd\r\n";

/// Lines in one piece of the CSV: what is in memory of it, however many there are.
const CSV_PAGE: usize = 2_000;

/// A line as CSV (RFC 4180).
fn csv(NumberedLine { number, idempotency_key, line }: &NumberedLine) -> String {
    let of = &line.quantities;
    let names = [&line.customer, &line.project, &line.environment, &line.task_type, &line.model];
    let counts =
        [of.tasks, of.tokens.input, of.tokens.output, of.tokens.cache_read, of.tokens.cache_write, of.sandbox_ms];
    let mut cells = vec![number.to_string(), field(idempotency_key), line.kind.as_str().to_owned()];
    cells.push(line.day.to_string());
    cells.push(line.corrects.map_or_else(String::new, |month| month.to_string()));
    cells.extend(names.map(|name| field(name.as_deref().unwrap_or_default())));
    cells.extend(counts.map(|count| count.to_string()));
    let amounts = [of.cost_nano_usd, of.refunded_nano_usd, line.billable_nano_usd];
    cells.extend(amounts.map(|amount| amount.to_string()));
    cells.join(",") + "\r\n"
}

/// What is left to send of a bill.
struct Rest {
    app: web::Data<App>,
    caller: Caller,
    bill: Arc<Bill>,
    query: LineQuery,
    /// The last page is on its way.
    over: bool,
    ready: Option<String>,
    _permit: tokio::sync::OwnedSemaphorePermit,
}

impl Rest {
    /// Makes the next lines ready.
    async fn read_on(&mut self) -> Result<(), Problem> {
        let page = self.app.read.bill_lines(Arc::clone(&self.bill), self.query.clone(), CSV_PAGE).await?;
        self.ready.get_or_insert_default().extend(page.lines.iter().map(csv));
        self.over = page.next.is_none();
        self.query.after = page.next;
        Ok(())
    }

    /// Whether whoever asked may still read the rest.
    fn still_may(&self) -> Result<(), Problem> {
        let caller = self.app.standing(&self.caller).ok_or_else(Problem::unauthenticated)?;
        caller.require(Scope::BillingRead)?;
        team_of(&caller, Some(self.query.team.clone())).map(drop)
    }
}

/// Every line as CSV, page by page.
async fn everything(
    app: web::Data<App>,
    caller: Caller,
    bill: Arc<Bill>,
    query: LineQuery,
) -> Result<HttpResponse, Problem> {
    let permit = app.stream_permit()?;
    let name = format!("attachment; filename=\"{}-{}.csv\"", query.team, query.period);
    let ready = Some(COLUMNS.to_owned());
    let mut rest = Rest { app, caller, bill, query, over: false, ready, _permit: permit };
    // Before the first byte, so that what cannot be read is still a problem.
    rest.read_on().await?;
    let pieces = stream::unfold(Some(rest), |rest| async {
        let mut rest = rest?;
        if let Some(ready) = rest.ready.take() {
            return Some((Ok::<_, actix_web::Error>(Bytes::from(ready)), Some(rest)));
        }
        if rest.over {
            return None;
        }
        let read = match rest.still_may() {
            Ok(()) => rest.read_on().await,
            Err(problem) => Err(problem),
        };
        match read {
            Ok(()) => Some((Ok(rest.ready.take().unwrap_or_default().into()), Some(rest))),
            // The connection breaks off: an end would look like the end of the bill.
            Err(problem) => Some((Err(problem.into()), None)),
        }
    });
    Ok(HttpResponse::Ok()
        .content_type("text/csv; charset=utf-8")
        .insert_header((header::CONTENT_DISPOSITION, name))
        .streaming(pieces))
}

/// The bill of a month: what it comes to for each customer, and its lines.
///
/// An open month is shown as it stands. A closed one stays as it is: what comes for it later is an adjustment on the
/// next bill, which names the month that it corrects.
#[utoipa::path(get, path = "/v1/billing/periods/{period}", tag = "billing", operation_id = "getBill",
    params(("period" = String, Path, description = "A month such as 2026-11"),
        ("team" = Option<String>, Query, description = "The key's own team when absent; an operator names one"),
        ("customer" = Option<String>, Query, description = "Only the lines for this customer"),
        ("cursor" = Option<String>, Query, description = "`nextCursor` of the page before"),
        ("limit" = Option<u32>, Query, minimum = 1, maximum = 10000),
        ("format" = Option<String>, Query, description = "`csv`: every line; the same as `Accept: text/csv`")),
    responses((status = 200, description = "The bill", content((BillView = "application/json"), (String = "text/csv"))),
        (status = 400, description = "Parameters that do not do", body = ProblemBody, content_type = "application/problem+json"),
        (status = 404, description = "No such month, or another team's", body = ProblemBody, content_type = "application/problem+json"),
        (status = 409, description = "The month has more lines than a bill may have", body = ProblemBody, content_type = "application/problem+json")))]
pub async fn get(
    app: web::Data<App>,
    caller: Caller,
    period: web::Path<String>,
    request: HttpRequest,
) -> Result<HttpResponse, Problem> {
    let period = month(&period)?;
    let mut query = Parameters::of(&request)?;
    let asked = query.text("team");
    let customer = query.text("customer");
    let after = query.parsed::<LineCursor>("cursor", "the nextCursor of the page before");
    let limit = query.limit(DEFAULT_LINES, MAX_LINES);
    let format = query.text("format");
    if !matches!(format.as_deref(), None | Some("csv" | "json")) {
        query.fault("format", "expected json or csv");
    }
    query.finish()?;
    let team = team_of(&caller, asked)?;
    let accepts = request.headers().get(header::ACCEPT).and_then(|value| value.to_str().ok());
    let as_csv = match format.as_deref() {
        Some(format) => format == "csv",
        None => accepts.is_some_and(|accept| accept.contains("text/csv")),
    };
    app.caught_up().await?;
    let too_many = || Problem::from(orchestra_actors::BillingError::TooManyLines);
    let bill = Arc::new(app.read.bill(team.clone(), period).await?.ok_or_else(too_many)?);
    let first = after.is_none();
    let query = LineQuery { team: team.clone(), period, customer: customer.clone(), after };
    if as_csv {
        return everything(app, caller, bill, query).await;
    }
    let closed = bill.billing.closed.get(&period);
    // All lines are read for it, so only once for all pages.
    let intact = match closed.filter(|_| first) {
        Some(closed) => Some(app.read.bill_digest(Arc::clone(&bill), team.clone(), period).await? == closed.digest),
        None => None,
    };
    if intact == Some(false) {
        tracing::error!(%team, %period, "the lines of a closed month are not those that were written down");
    }
    let page = app.read.bill_lines(Arc::clone(&bill), query, limit).await?;
    let customers: Vec<_> =
        bill.customers.iter().filter(|sum| customer.is_none() || sum.customer == customer).collect();
    let totals = match (&customer, customers.first(), closed) {
        (Some(_), Some(sum), _) => sum.totals,
        (Some(_), None, _) => Totals::default(),
        (None, _, Some(closed)) => closed.totals,
        (None, _, None) => bill.totals,
    };
    let of = |sum: &&orchestra_events::billing::CustomerTotal| CustomerView {
        customer: sum.customer.clone(),
        totals: (&sum.totals).into(),
    };
    Ok(HttpResponse::Ok().json(BillView {
        status: StatusView::of(&bill.billing, period),
        currency: "USD",
        plans: closed.map_or_else(|| bill.plans.clone(), |closed| closed.plans.clone()),
        totals: (&totals).into(),
        customers: customers.iter().map(of).collect(),
        lines: page.lines.into_iter().map(LineView::from).collect(),
        through: closed.map(|closed| closed.through.0),
        digest: closed.map(|closed| closed.digest.clone()),
        intact,
        next_cursor: page.next.map(|next| next.to_string()),
        period: period.to_string(),
        team,
    }))
}

/// Closes a month for good.
///
/// Only one that is over (UTC), and only after those before it. Asked again, it answers what was closed.
#[utoipa::path(post, path = "/v1/billing/periods/{period}/close", tag = "billing", operation_id = "closeBillingPeriod",
    params(("period" = String, Path, description = "A month such as 2026-11"),
        ("team" = Option<String>, Query, description = "The key's own team when absent; an operator names one")),
    responses((status = 200, description = "It is closed, or was already", body = PeriodView),
        (status = 400, description = "Parameters that do not do", body = ProblemBody, content_type = "application/problem+json"),
        (status = 404, description = "No such month, or another team's", body = ProblemBody, content_type = "application/problem+json"),
        (status = 409, description = "It is not over, or an earlier one is open", body = ProblemBody, content_type = "application/problem+json")))]
pub async fn close(
    app: web::Data<App>,
    caller: Caller,
    period: web::Path<String>,
    request: HttpRequest,
) -> Result<HttpResponse, Problem> {
    let period = month(&period)?;
    let mut query = Parameters::of(&request)?;
    let asked = query.text("team");
    query.finish()?;
    let team = team_of(&caller, asked)?;
    app.billing.close_period(&team, period, caller.actor_for(&team)).await?;
    Ok(HttpResponse::Ok().json(summary(&app, &team, period).await?))
}

/// The month as a repeat of a request about it sees it.
pub fn show(
    app: web::Data<App>,
    caller: Caller,
    subject: Subject,
) -> LocalBoxFuture<'static, Result<HttpResponse, Problem>> {
    Box::pin(async move {
        let period = month(&subject.id)?;
        let mut query = Parameters::read(&subject.query)?;
        let team = team_of(&caller, query.text("team"))?;
        Ok(HttpResponse::Ok().json(summary(&app, &team, period).await?))
    })
}

/// Sends a closed month's bill to a webhook: its lines in their order, as the events `billing.invoice-ready`, and what they
/// come to, as `billing.period-closed`.
///
/// Every message goes out under the id that it has for this webhook, and every line has an `idempotencyKey`
/// (`team/2026-10/17`), both the same however often this is asked: a receiver that knows them counts nothing twice. The
/// webhook has to want these events; it is told of them by itself when the month is closed, too.
#[utoipa::path(post, path = "/v1/billing/periods/{period}/push", tag = "billing", operation_id = "pushBill",
    params(("period" = String, Path, description = "A month such as 2026-11"),
        ("team" = Option<String>, Query, description = "The key's own team when absent; an operator names one")),
    request_body(content = super::openapi::BillPushRequest),
    responses((status = 202, description = "It is being sent", body = PeriodView),
        (status = 400, description = "Parameters or a body that do not do", body = ProblemBody, content_type = "application/problem+json"),
        (status = 404, description = "No such month or webhook, or another team's", body = ProblemBody, content_type = "application/problem+json"),
        (status = 409, description = "The month is not closed, or the webhook is disabled or busy with replays", body = ProblemBody, content_type = "application/problem+json"),
        (status = 422, description = "Fields that do not do, or a webhook that is not told of bills", body = ProblemBody, content_type = "application/problem+json")))]
pub async fn push(
    app: web::Data<App>,
    caller: Caller,
    period: web::Path<String>,
    request: HttpRequest,
    payload: web::Payload,
) -> Result<HttpResponse, Problem> {
    let period = month(&period)?;
    let mut query = Parameters::of(&request)?;
    let asked = query.text("team");
    query.finish()?;
    let team = team_of(&caller, asked)?;
    let raw = body::json(&request, payload).await?;
    let mut faults = Faults::default();
    let is_id = |text: &str| text.parse::<WebhookId>().map(drop).map_err(|error| error.to_string());
    let named = Object::read(&raw, "", &mut faults).and_then(|mut object| {
        let before = faults.count();
        let webhook = object.text("webhook", is_id, &mut faults);
        if webhook.is_none() && faults.count() == before {
            faults.add("/webhook", "is required: to whom?");
        }
        object.finish(&mut faults);
        webhook
    });
    faults.none()?;
    let webhook = webhooks::visible(&app, &caller, &named.unwrap_or_default()).await?;
    // A bill goes to the team's own webhooks, and to those of the operators, who see every team.
    if webhook.spec.team.as_ref().is_some_and(|own| *own != team) {
        return Err(Problem::no_such_webhook());
    }
    let bills_owner = Owner { team: Some(team.clone()), ..Owner::default() };
    if !webhook.spec.is_told(&SENT_AS, &bills_owner) {
        let [lines, end] = SENT_AS;
        let detail = format!(
            "is not told of bills: have it want both `{lines}` and `{end}`, and of no project or environment alone"
        );
        return Err(Problem::invalid(vec![Field { pointer: "/webhook".to_owned(), detail }]));
    }
    let Some((from, through)) = app.billing.written_at(&team, period).await? else {
        let refusal = orchestra_events::billing::Refusal::NotClosed(period);
        return Err(orchestra_actors::BillingError::from(refusal).into());
    };
    let actor = caller.actor_for(&team);
    app.webhooks()?.replay_webhook(webhook.id, from, through, actor.clone()).await?;
    let pushed = Pushed { period, endpoint: webhook.id, from, through };
    app.billing.record_push(&team, pushed, actor).await?;
    Ok(HttpResponse::Accepted().json(summary(&app, &team, period).await?))
}

/// A month in sums, with everything that happened before this was called.
async fn summary(app: &App, team: &str, period: Month) -> Result<PeriodView, Problem> {
    app.caught_up().await?;
    let billing = app.read.billing(team.to_owned()).await?;
    let periods = app.read.billing_periods(team.to_owned()).await?;
    let sums = periods.iter().find(|sums| sums.period == period);
    let view = sums.map(|sums| PeriodView::new(team, &billing, sums));
    view.ok_or_else(|| Problem::internal("a closed month is not in the list"))
}
