//! Reading a request's body: JSON, whole, within bounds of size and time.

use std::time::Duration;

use actix_web::http::header;
use actix_web::web::{Bytes, BytesMut, Payload};
use actix_web::{HttpMessage, HttpRequest};
use futures_util::StreamExt as _;
use orchestra_actors::Credentials;
use serde_json::value::RawValue;

use super::fields::{self, Faults, Object};
use super::{payload as read_payload, rules};
use crate::problem::{Code, Problem};

/// The largest body any path takes. The longest task text, escaped character by character, fits with room to spare.
pub const MAX_BODY: usize = 512 * 1024;
/// How long a body may take to arrive.
pub const BODY_TIMEOUT: Duration = Duration::from_secs(30);

fn too_large() -> Problem {
    Problem::new(Code::BodyTooLarge, format!("A body has at most {MAX_BODY} bytes. Send less."))
}

async fn collect(mut payload: Payload) -> Result<Bytes, Problem> {
    let mut body = BytesMut::new();
    while let Some(chunk) = payload.next().await {
        let chunk = chunk
            .map_err(|_| Problem::new(Code::BodyIncomplete, "The connection broke inside the body. Send it again."))?;
        if body.len() + chunk.len() > MAX_BODY {
            return Err(too_large());
        }
        body.extend_from_slice(&chunk);
    }
    Ok(body.freeze())
}

pub(super) async fn read(request: &HttpRequest, payload: Payload) -> Result<Bytes, Problem> {
    let announced = request.headers().get(header::CONTENT_LENGTH).and_then(|length| length.to_str().ok());
    if announced.and_then(|length| length.parse::<usize>().ok()).is_some_and(|length| length > MAX_BODY) {
        return Err(too_large());
    }
    tokio::time::timeout(BODY_TIMEOUT, collect(payload)).await.map_err(|_| {
        Problem::new(
            Code::BodyIncomplete,
            format!("The body took longer than {} s. Send it again.", BODY_TIMEOUT.as_secs()),
        )
    })?
}

fn check_type(request: &HttpRequest) -> Result<(), Problem> {
    let encoded = request.headers().get(header::CONTENT_ENCODING).is_some_and(|encoding| encoding != "identity");
    if encoded || !request.content_type().eq_ignore_ascii_case("application/json") {
        return Err(Problem::new(Code::UnsupportedMediaType, "Send `Content-Type: application/json`, not compressed."));
    }
    Ok(())
}

/// The body as JSON.
pub async fn json(request: &HttpRequest, payload: Payload) -> Result<Box<RawValue>, Problem> {
    check_type(request)?;
    fields::json(&read(request, payload).await?)
}

/// The body as a JSON object; no body at all is an empty one.
pub async fn optional_object(
    request: &HttpRequest,
    payload: Payload,
    faults: &mut Faults,
) -> Result<Option<Object>, Problem> {
    let body = read(request, payload).await?;
    if body.is_empty() {
        return Ok(None);
    }
    check_type(request)?;
    Ok(Object::read(&fields::json(&body)?, "", faults))
}

/// Why somebody cancels, where they say it.
pub async fn reason(request: &HttpRequest, payload: Payload) -> Result<Option<String>, Problem> {
    let mut faults = Faults::default();
    let reason = optional_object(request, payload, &mut faults).await?.and_then(|mut object| {
        let reason = object.text("reason", rules::reason, &mut faults);
        object.finish(&mut faults);
        reason
    });
    faults.none()?;
    Ok(reason)
}

/// The secrets that may come along with a retry.
pub async fn optional_credentials(request: &HttpRequest, payload: Payload) -> Result<Credentials, Problem> {
    let mut faults = Faults::default();
    let given = match optional_object(request, payload, &mut faults).await? {
        Some(mut object) => {
            let given = object.object("credentials", &mut faults);
            object.finish(&mut faults);
            given.map_or_else(Credentials::default, |given| read_payload::credentials(given, &mut faults))
        }
        None => Credentials::default(),
    };
    faults.none()?;
    Ok(given)
}

/// Secrets in place of those that are there: at least one.
pub async fn credentials(request: &HttpRequest, payload: Payload) -> Result<Credentials, Problem> {
    let raw = json(request, payload).await?;
    let mut faults = Faults::default();
    let given = Object::read(&raw, "", &mut faults)
        .map_or_else(Credentials::default, |object| read_payload::credentials(object, &mut faults));
    if given.model.is_none() && given.git.is_none() && faults.count() == 0 {
        faults.add("", "expected `model`, `git` or both");
    }
    faults.none()?;
    Ok(given)
}
