//! REST, live streams and the dashboard.
//!
//! [`App`] holds what every handler needs, [`configure`] hangs everything under one scope with the security headers
//! around it; [`routes`] is the one way in, with the guard before each handler. Architecture invariant: nothing here knows how tasks are run or how events are stored.

pub mod api;
pub mod app;
pub mod auth;
pub mod fragments;
pub mod headers;
pub mod live;
pub mod pages;
pub mod problem;
pub mod routes;

pub use app::App;

use actix_web::{middleware, web};

/// Hangs the API (and the dashboard) into an actix application. The scope answers every path, unknown ones included,
/// so that no answer leaves without its security headers.
pub fn configure(cfg: &mut web::ServiceConfig, app: web::Data<App>) {
    cfg.service(
        web::scope("")
            .app_data(app)
            // A path that does not decode names nothing.
            .app_data(web::PathConfig::default().error_handler(|_, _| problem::Problem::no_such_path().into()))
            .wrap(middleware::from_fn(auth::watch::watch))
            .wrap(middleware::from_fn(headers::secure))
            .configure(|cfg| routes::hang(cfg, routes::table()))
            .default_service(web::route().to(pages::nothing_here)),
    );
}
