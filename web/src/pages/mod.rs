//! The dashboard: server-rendered pages that work without JavaScript for reading, and stay current with it.
//!
//! One file per page; each template has a context of its own with samples, and one test renders every template with
//! every sample. Text of users, models and sandboxes reaches a page through auto-escaping templates alone.

pub mod actions;
pub mod assets;
pub mod budgets;
pub mod campaigns;
pub mod diff;
pub mod docs;
pub mod error;
pub mod format;
pub mod html;
pub mod live;
pub mod machine;
pub mod panels;
pub mod prose;
pub mod sample;
pub mod shell;
pub mod sign_in;
pub mod task;
pub mod tasks;
pub mod timeline;
pub mod usage;

use std::sync::Arc;

use actix_web::web;
use orchestra_events::blob::BlobStore;

pub use error::{PageError, nothing_here};

use crate::auth::Tickets;
use crate::fragments::Fragments;

/// What only the dashboard needs.
#[derive(Default)]
pub struct Dashboard {
    /// The links that sign in once.
    pub tickets: Tickets,
    /// The replaceable pieces of its pages.
    pub fragments: Fragments,
    /// Where outputs are that are too large for their events.
    pub blobs: Option<Arc<dyn BlobStore>>,
}

/// Hangs the dashboard in.
pub fn configure(cfg: &mut web::ServiceConfig) {
    let form = web::FormConfig::default().limit(actions::MAX_FORM).error_handler(|error, _| {
        let detail = format!("The form did not arrive whole: {error}. Go back and send it again.");
        PageError::from(crate::problem::Problem::new(crate::problem::Code::BodyIncomplete, detail)).into()
    });
    let query = web::QueryConfig::default().error_handler(|_, _| PageError::not_found().into());
    let path = web::PathConfig::default().error_handler(|_, _| PageError::not_found().into());
    cfg.service(
        web::scope("/tasks")
            .app_data(form.clone())
            .app_data(query.clone())
            .app_data(path)
            .route("", web::get().to(tasks::show))
            .route("/{id}", web::get().to(task::show))
            .route("/{id}/live", web::get().to(live::task::stream))
            .route("/{id}/diff", web::get().to(task::show_diff))
            .route("/{id}/diff.patch", web::get().to(task::send_patch))
            .route("/{id}/output/{revision}", web::get().to(task::send_output))
            .route("/{id}/cancel", web::post().to(actions::cancel))
            .route("/{id}/retry", web::post().to(actions::retry))
            .route("/{id}/messages", web::post().to(actions::message))
            .route("/{id}/credentials", web::post().to(actions::credentials))
            .default_service(web::route().to(nothing_here)),
    );
    cfg.service(
        web::scope("/campaigns")
            .app_data(form.clone())
            .app_data(query.clone())
            .route("", web::get().to(campaigns::show))
            .route("/{id}", web::get().to(campaigns::show_one))
            .route("/{id}/live", web::get().to(live::campaigns::one))
            .route("/{id}/cancel", web::post().to(campaigns::cancel))
            .route("/{id}/retry", web::post().to(campaigns::retry))
            .route("/{id}/credentials", web::post().to(campaigns::credentials))
            .default_service(web::route().to(nothing_here)),
    );
    cfg.service(web::resource("/live/campaigns").app_data(query.clone()).route(web::get().to(live::campaigns::list)));
    cfg.service(web::resource("/").app_data(query.clone()).route(web::get().to(tasks::show)));
    cfg.service(web::resource("/budgets").app_data(query.clone()).route(web::get().to(budgets::show)));
    cfg.service(
        web::scope("/usage")
            .app_data(form.clone())
            .app_data(query.clone())
            .route("", web::get().to(usage::show))
            .route("/{period}/close", web::post().to(usage::close))
            .default_service(web::route().to(nothing_here)),
    );
    cfg.service(web::resource("/live/tasks").app_data(query.clone()).route(web::get().to(live::list::stream)));
    cfg.service(
        web::resource("/sign-in")
            .app_data(form.clone())
            .app_data(query)
            .route(web::get().to(sign_in::show))
            .route(web::post().to(sign_in::submit)),
    );
    cfg.route("/sign-in/{ticket}", web::get().to(sign_in::redeem));
    cfg.service(web::resource("/sign-out").app_data(form).route(web::post().to(sign_in::sign_out)));
    cfg.route("/assets/{name}", web::get().to(assets::serve));
    cfg.route("/docs/errors", web::get().to(docs::index));
    cfg.route("/docs/errors/{code}", web::get().to(docs::show));
}
