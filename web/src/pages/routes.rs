//! The route table of the dashboard: every page, form and live stream, with who may ask for it.

use actix_web::FromRequest;
use actix_web::http::Method;
use actix_web::{Handler, Responder, web};
use orchestra_events::key::Scope;

use super::{
    actions, assets, audit, budgets, campaigns, docs, keys, live, people, sign_in, task, tasks, usage, webhooks,
};
use crate::routes::{Access, Endpoint, Surface};

/// A row with its handler.
fn row<F, Args>(surface: Surface, method: Method, path: &'static str, access: Access, handler: F) -> Endpoint
where
    F: Handler<Args>,
    Args: FromRequest + 'static,
    F::Output: Responder + 'static,
{
    let route = web::route().method(method.clone()).to(handler);
    Endpoint { method, path, access, surface, route }
}

/// A page that is shown.
fn get<F, Args>(path: &'static str, access: Access, handler: F) -> Endpoint
where
    F: Handler<Args>,
    Args: FromRequest + 'static,
    F::Output: Responder + 'static,
{
    row(Surface::Page, Method::GET, path, access, handler)
}

/// A form that is sent.
fn post<F, Args>(path: &'static str, access: Access, handler: F) -> Endpoint
where
    F: Handler<Args>,
    Args: FromRequest + 'static,
    F::Output: Responder + 'static,
{
    row(Surface::Page, Method::POST, path, access, handler)
}

/// The stream of an open page.
fn live<F, Args>(path: &'static str, access: Access, handler: F) -> Endpoint
where
    F: Handler<Args>,
    Args: FromRequest + 'static,
    F::Output: Responder + 'static,
{
    row(Surface::Stream, Method::GET, path, access, handler)
}

/// Every page, form and live stream there is.
pub fn pages() -> Vec<Endpoint> {
    let scope = Access::Scope;
    vec![
        get("/", scope(Scope::TasksRead), tasks::show),
        get("/tasks", scope(Scope::TasksRead), tasks::show),
        get("/tasks/{id}", scope(Scope::TasksRead), task::show),
        live("/tasks/{id}/live", scope(Scope::TasksRead), live::task::stream),
        get("/tasks/{id}/diff", scope(Scope::TasksRead), task::show_diff),
        get("/tasks/{id}/diff.patch", scope(Scope::TasksRead), task::send_patch),
        get("/tasks/{id}/output/{revision}", scope(Scope::TasksRead), task::send_output),
        post("/tasks/{id}/cancel", scope(Scope::TasksCancel), actions::cancel),
        post("/tasks/{id}/retry", scope(Scope::TasksCreate), actions::retry),
        post("/tasks/{id}/messages", scope(Scope::TasksCreate), actions::message),
        post("/tasks/{id}/erase", scope(Scope::ContentErase), actions::erase),
        post("/tasks/{id}/credentials", scope(Scope::TasksCreate), actions::credentials),
        live("/live/tasks", scope(Scope::TasksRead), live::list::stream),
        get("/campaigns", scope(Scope::CampaignsRead), campaigns::show),
        get("/campaigns/{id}", scope(Scope::CampaignsRead), campaigns::show_one),
        live("/campaigns/{id}/live", scope(Scope::CampaignsRead), live::campaigns::one),
        post("/campaigns/{id}/cancel", scope(Scope::CampaignsCancel), campaigns::cancel),
        post("/campaigns/{id}/erase", scope(Scope::ContentErase), campaigns::erase),
        post("/campaigns/{id}/retry", scope(Scope::CampaignsCreate), campaigns::retry),
        post("/campaigns/{id}/credentials", scope(Scope::CampaignsCreate), campaigns::credentials),
        live("/live/campaigns", scope(Scope::CampaignsRead), live::campaigns::list),
        get("/audit", scope(Scope::AuditRead), audit::show),
        get("/budgets", scope(Scope::BudgetsRead), budgets::show),
        get("/usage", scope(Scope::UsageRead), usage::show),
        post("/usage/{period}/close", scope(Scope::BillingWrite), usage::close),
        get("/webhooks", scope(Scope::WebhooksRead), webhooks::show),
        post("/webhooks", scope(Scope::WebhooksWrite), webhooks::create),
        get("/webhooks/{id}", scope(Scope::WebhooksRead), webhooks::show_one),
        post("/webhooks/{id}/test", scope(Scope::WebhooksWrite), webhooks::test),
        post("/webhooks/{id}/enable", scope(Scope::WebhooksWrite), webhooks::enable),
        post("/webhooks/{id}/disable", scope(Scope::WebhooksWrite), webhooks::disable),
        post("/webhooks/{id}/secret", scope(Scope::WebhooksWrite), webhooks::rotate),
        post("/webhooks/{id}/replay", scope(Scope::WebhooksWrite), webhooks::replay),
        post("/webhooks/{id}/remove", scope(Scope::WebhooksWrite), webhooks::remove),
        get("/sign-in", Access::Anyone, sign_in::show),
        post("/sign-in", Access::Anyone, sign_in::submit),
        get("/sign-in/oidc", Access::Anyone, sign_in::oidc::start),
        get("/sign-in/oidc/return", Access::Anyone, sign_in::oidc::finish),
        get("/sign-in/{ticket}", Access::Anyone, sign_in::redeem),
        post("/sign-out", Access::Known, sign_in::sign_out),
        post("/team", Access::Known, people::choose),
        get("/keys", scope(Scope::KeysRead), keys::show),
        post("/keys", scope(Scope::KeysWrite), keys::issue),
        post("/keys/{id}/rotate", scope(Scope::KeysWrite), keys::rotate),
        post("/keys/{id}/revoke", scope(Scope::KeysWrite), keys::revoke),
        get("/people", scope(Scope::KeysWrite), people::show),
        post("/people/{id}/end", scope(Scope::KeysWrite), people::end),
        post("/people/{id}/end-all", scope(Scope::KeysWrite), people::end_all),
        get("/assets/{name}", Access::Anyone, assets::serve),
        get("/docs/errors", Access::Anyone, docs::index),
    ]
}
