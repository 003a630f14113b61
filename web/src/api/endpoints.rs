//! The route table of the interface: every method and path, in one list that the server, the OpenAPI document's test,
//! the authorisation matrix and the answers to wrong methods all read.

use actix_web::http::Method;
use actix_web::middleware::from_fn;
use actix_web::{Route, web};
use orchestra_events::key::Scope;

use super::once::{Post, at_most_once};
use super::repeat::{Repeat, repeat};
use super::{
    audit, audit_record, billing, billing_periods, budgets, campaigns, docs, events, health, keys, openapi,
    task_actions, tasks, usage, webhooks,
};
use crate::pages;
use crate::routes::Surface;
pub use crate::routes::{Access, Endpoint};

/// Every endpoint there is.
pub fn endpoints() -> Vec<Endpoint> {
    let mut table = Vec::new();
    let mut add = |method: Method, path: &'static str, access: Access, route: Route| {
        let mut route = route.method(method.clone());
        if let Some(Repeat::Claimed { done, ends, show }) = repeat(&method, path) {
            let post = Post { path, done, ends, show };
            route = route.wrap(from_fn(move |request, next| at_most_once(post, request, next)));
        }
        table.push(Endpoint { method, path, access, surface: Surface::Api, route });
    };
    add(Method::POST, "/v1/tasks", Access::Scope(Scope::TasksCreate), web::route().to(tasks::create));
    add(Method::GET, "/v1/tasks", Access::Scope(Scope::TasksRead), web::route().to(tasks::list));
    add(Method::GET, "/v1/tasks/{id}", Access::Scope(Scope::TasksRead), web::route().to(tasks::get));
    add(Method::GET, "/v1/tasks/{id}/events", Access::Scope(Scope::TasksRead), web::route().to(events::of_task));
    add(
        Method::POST,
        "/v1/tasks/{id}/cancel",
        Access::Scope(Scope::TasksCancel),
        web::route().to(task_actions::cancel),
    );
    add(Method::POST, "/v1/tasks/{id}/retry", Access::Scope(Scope::TasksCreate), web::route().to(task_actions::retry));
    add(
        Method::POST,
        "/v1/tasks/{id}/messages",
        Access::Scope(Scope::TasksCreate),
        web::route().to(task_actions::message),
    );
    add(
        Method::PUT,
        "/v1/tasks/{id}/credentials",
        Access::Scope(Scope::TasksCreate),
        web::route().to(task_actions::credentials),
    );
    add(Method::GET, "/v1/tasks/{id}/diff", Access::Scope(Scope::TasksRead), web::route().to(task_actions::diff));
    add(
        Method::DELETE,
        "/v1/tasks/{id}/content",
        Access::Scope(Scope::ContentErase),
        web::route().to(task_actions::erase),
    );
    add(Method::POST, "/v1/campaigns", Access::Scope(Scope::CampaignsCreate), web::route().to(campaigns::create));
    add(Method::GET, "/v1/campaigns", Access::Scope(Scope::CampaignsRead), web::route().to(campaigns::list));
    add(Method::GET, "/v1/campaigns/{id}", Access::Scope(Scope::CampaignsRead), web::route().to(campaigns::get));
    add(
        Method::POST,
        "/v1/campaigns/{id}/cancel",
        Access::Scope(Scope::CampaignsCancel),
        web::route().to(campaigns::cancel),
    );
    add(
        Method::POST,
        "/v1/campaigns/{id}/retry",
        Access::Scope(Scope::CampaignsCreate),
        web::route().to(campaigns::retry),
    );
    add(
        Method::PUT,
        "/v1/campaigns/{id}/credentials",
        Access::Scope(Scope::CampaignsCreate),
        web::route().to(campaigns::credentials),
    );
    add(
        Method::DELETE,
        "/v1/campaigns/{id}/content",
        Access::Scope(Scope::ContentErase),
        web::route().to(campaigns::erase),
    );
    add(Method::GET, "/v1/events", Access::Scope(Scope::AuditRead), web::route().to(events::of_log));
    add(Method::GET, "/v1/audit", Access::Scope(Scope::AuditRead), web::route().to(audit::list));
    add(Method::GET, "/v1/audit/key", Access::Scope(Scope::AuditRead), web::route().to(audit_record::key));
    add(
        Method::GET,
        "/v1/audit/checkpoints",
        Access::Scope(Scope::AuditRead),
        web::route().to(audit_record::checkpoints),
    );
    add(Method::POST, "/v1/audit/checkpoints", Access::Scope(Scope::Admin), web::route().to(audit_record::sign));
    add(Method::GET, "/v1/audit/export", Access::Scope(Scope::Admin), web::route().to(audit_record::export));
    add(Method::GET, "/v1/budgets", Access::Scope(Scope::BudgetsRead), web::route().to(budgets::list));
    add(Method::GET, "/v1/budgets/{scope}", Access::Scope(Scope::BudgetsRead), web::route().to(budgets::get));
    add(Method::PUT, "/v1/budgets/{scope}", Access::Scope(Scope::BudgetsWrite), web::route().to(budgets::put));
    add(Method::GET, "/v1/usage", Access::Scope(Scope::UsageRead), web::route().to(usage::report));
    add(Method::GET, "/v1/billing/plans/{team}", Access::Scope(Scope::BillingRead), web::route().to(billing::plans));
    add(
        Method::PUT,
        "/v1/billing/plans/{team}",
        Access::Scope(Scope::BillingWrite),
        web::route().to(billing::put_plan),
    );
    add(Method::GET, "/v1/billing/periods", Access::Scope(Scope::BillingRead), web::route().to(billing_periods::list));
    add(
        Method::GET,
        "/v1/billing/periods/{period}",
        Access::Scope(Scope::BillingRead),
        web::route().to(billing_periods::get),
    );
    add(
        Method::POST,
        "/v1/billing/periods/{period}/close",
        Access::Scope(Scope::BillingWrite),
        web::route().to(billing_periods::close),
    );
    add(
        Method::POST,
        "/v1/billing/periods/{period}/push",
        Access::Scope(Scope::BillingWrite),
        web::route().to(billing_periods::push),
    );
    add(Method::POST, "/v1/keys", Access::Scope(Scope::KeysWrite), web::route().to(keys::create));
    add(Method::GET, "/v1/keys", Access::Scope(Scope::KeysRead), web::route().to(keys::list));
    add(Method::GET, "/v1/keys/{id}", Access::Scope(Scope::KeysRead), web::route().to(keys::get));
    add(Method::DELETE, "/v1/keys/{id}", Access::Scope(Scope::KeysWrite), web::route().to(keys::revoke));
    add(Method::POST, "/v1/keys/{id}/rotate", Access::Scope(Scope::KeysWrite), web::route().to(keys::rotate));
    let (reads, writes) = (Access::Scope(Scope::WebhooksRead), Access::Scope(Scope::WebhooksWrite));
    add(Method::GET, "/v1/webhooks", reads, web::route().to(webhooks::list));
    add(Method::POST, "/v1/webhooks", writes, web::route().to(webhooks::create));
    add(Method::GET, "/v1/webhooks/{id}", reads, web::route().to(webhooks::get));
    add(Method::PATCH, "/v1/webhooks/{id}", writes, web::route().to(webhooks::change));
    add(Method::DELETE, "/v1/webhooks/{id}", writes, web::route().to(webhooks::remove));
    add(Method::POST, "/v1/webhooks/{id}/secret", writes, web::route().to(webhooks::rotate));
    add(Method::POST, "/v1/webhooks/{id}/test", writes, web::route().to(webhooks::test));
    add(Method::POST, "/v1/webhooks/{id}/replay", writes, web::route().to(webhooks::replay));
    add(Method::GET, "/v1/webhooks/{id}/deliveries", reads, web::route().to(webhooks::deliveries));
    add(Method::GET, "/openapi.json", Access::Anyone, web::route().to(openapi::openapi_json));
    add(Method::GET, "/docs", Access::Anyone, web::route().to(docs::index));
    add(Method::GET, "/docs/style.css", Access::Anyone, web::route().to(docs::style));
    add(Method::GET, "/docs/errors/{code}", Access::Anyone, web::route().to(pages::docs::show));
    add(Method::GET, "/healthz", Access::Anyone, web::route().to(health::healthz));
    add(Method::GET, "/readyz", Access::Anyone, web::route().to(health::readyz));
    add(Method::GET, "/metrics", Access::Anyone, web::route().to(health::metrics));
    table
}
