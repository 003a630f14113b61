//! What can be done with a task from its page: plain forms that are answered with the way back to it.

use actix_web::http::header;
use actix_web::{HttpResponse, web};
use orchestra_actors::Credentials;
use orchestra_events::TaskId;
use secrecy::SecretString;
use serde::Deserialize;

use super::error::PageError;
use super::shell::Visitor;
use super::task::{Current, task_id};
use crate::App;
use crate::problem::{Code, Problem};

/// Largest form, in bytes: a message of the longest kind with every byte percent-encoded.
pub const MAX_FORM: usize = 64 * 1024;

/// A form without fields of its own.
#[derive(Deserialize)]
pub struct Plain {
    #[serde(default)]
    csrf: String,
}

impl Plain {
    /// The token of the form.
    pub fn csrf(&self) -> &str {
        &self.csrf
    }
}

/// Words for the agent.
#[derive(Deserialize)]
pub struct Message {
    #[serde(default)]
    csrf: String,
    message: String,
}

/// Secrets for a task.
#[derive(Deserialize)]
pub struct Secrets {
    #[serde(default)]
    csrf: String,
    #[serde(default)]
    model: String,
    #[serde(default)]
    git: String,
}

impl Secrets {
    /// The token of the form.
    pub fn csrf(&self) -> &str {
        &self.csrf
    }

    /// What was filled in.
    pub fn into_credentials(self) -> Credentials {
        let given = |text: String| {
            let text = text.trim();
            (!text.is_empty()).then(|| SecretString::from(text))
        };
        Credentials { model: given(self.model), git: given(self.git) }
    }
}

fn back(id: TaskId, notice: &str) -> HttpResponse {
    HttpResponse::SeeOther().insert_header((header::LOCATION, format!("/tasks/{id}?notice={notice}"))).finish()
}

/// The task of a form, once the visitor has shown that the form is theirs.
async fn admitted(app: &App, visitor: &Visitor, id: &str, csrf: &str) -> Result<TaskId, PageError> {
    visitor.check_form(csrf)?;
    Ok(Current::load(app, visitor, task_id(id)?).await?.task.id)
}

fn with_way_back<E: Into<PageError>>(id: TaskId) -> impl Fn(E) -> PageError {
    move |error| error.into().back_to(format!("/tasks/{id}"), "Back to the task")
}

/// `POST /tasks/{id}/cancel`.
pub async fn cancel(
    app: web::Data<App>,
    visitor: Visitor,
    id: web::Path<String>,
    form: web::Form<Plain>,
) -> Result<HttpResponse, PageError> {
    let id = admitted(&app, &visitor, &id, &form.csrf).await?;
    app.tasks.cancel(id, None, visitor.caller.actor()).await.map_err(with_way_back(id))?;
    Ok(back(id, "cancelling"))
}

/// A form that wants to be certain.
#[derive(Deserialize)]
pub struct Certain {
    #[serde(default)]
    csrf: String,
    #[serde(default)]
    certain: Option<String>,
}

impl Certain {
    /// The token of the form.
    pub fn csrf(&self) -> &str {
        &self.csrf
    }

    /// Refuses a form whose box was not ticked.
    pub fn check(&self) -> Result<(), PageError> {
        if self.certain.is_some() {
            return Ok(());
        }
        let detail = "Nothing was erased: tick the box that says that it cannot be undone.";
        Err(Problem::new(Code::InvalidRequest, detail).into())
    }
}

/// `POST /tasks/{id}/erase`.
pub async fn erase(
    app: web::Data<App>,
    visitor: Visitor,
    id: web::Path<String>,
    form: web::Form<Certain>,
) -> Result<HttpResponse, PageError> {
    let id = admitted(&app, &visitor, &id, &form.csrf).await?;
    form.check().map_err(with_way_back(id))?;
    app.tasks.erase_content(id, visitor.caller.actor()).await.map_err(with_way_back(id))?;
    Ok(back(id, "erased"))
}

/// `POST /tasks/{id}/retry`.
pub async fn retry(
    app: web::Data<App>,
    visitor: Visitor,
    id: web::Path<String>,
    form: web::Form<Secrets>,
) -> Result<HttpResponse, PageError> {
    let id = admitted(&app, &visitor, &id, &form.csrf).await?;
    let given = form.into_inner().into_credentials();
    app.tasks.retry(id, given, visitor.caller.actor()).await.map_err(with_way_back(id))?;
    Ok(back(id, "retrying"))
}

/// `POST /tasks/{id}/messages`.
pub async fn message(
    app: web::Data<App>,
    visitor: Visitor,
    id: web::Path<String>,
    form: web::Form<Message>,
) -> Result<HttpResponse, PageError> {
    let id = admitted(&app, &visitor, &id, &form.csrf).await?;
    let message = form.into_inner().message;
    app.tasks.steer(id, message, visitor.caller.actor()).await.map_err(with_way_back(id))?;
    Ok(back(id, "sent"))
}

/// `POST /tasks/{id}/credentials`.
pub async fn credentials(
    app: web::Data<App>,
    visitor: Visitor,
    id: web::Path<String>,
    form: web::Form<Secrets>,
) -> Result<HttpResponse, PageError> {
    let id = admitted(&app, &visitor, &id, &form.csrf).await?;
    let given = form.into_inner().into_credentials();
    app.tasks.supply_credentials(id, given, visitor.caller.actor()).await.map_err(with_way_back(id))?;
    Ok(back(id, "supplied"))
}
