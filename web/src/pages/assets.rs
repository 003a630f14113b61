//! Style sheet, scripts and the icon: in the binary, named by what is in them, and kept by browsers for a year.

use std::sync::LazyLock;

use actix_web::http::header;
use actix_web::{HttpRequest, HttpResponse, web};
use serde::Deserialize;
use sha2::{Digest, Sha256};

use super::error::PageError;

/// A file that pages refer to.
#[derive(Debug)]
pub struct Asset {
    name: &'static str,
    content_type: &'static str,
    content: &'static [u8],
    hash: LazyLock<String>,
}

macro_rules! asset {
    ($file:literal, $content_type:literal) => {
        Asset {
            name: $file,
            content_type: $content_type,
            content: include_bytes!(concat!("../../assets/", $file)),
            hash: LazyLock::new(|| hash(include_bytes!(concat!("../../assets/", $file)))),
        }
    };
}

/// Enough of a SHA-256 to tell two builds apart.
fn hash(content: &[u8]) -> String {
    Sha256::digest(content).iter().take(8).map(|byte| format!("{byte:02x}")).collect()
}

/// The looks.
pub static STYLE: Asset = asset!("orchestra.css", "text/css; charset=utf-8");
/// Clocks and the connection mark.
pub static SCRIPT: Asset = asset!("dashboard.js", "text/javascript; charset=utf-8");
/// Swaps what the streams bring.
pub static HTMX: Asset = asset!("htmx.min.js", "text/javascript; charset=utf-8");
/// Its stream extension.
pub static SSE: Asset = asset!("hx-sse.min.js", "text/javascript; charset=utf-8");
/// The mark.
pub static ICON: Asset = asset!("icon.svg", "image/svg+xml");

static ALL: [&Asset; 5] = [&STYLE, &SCRIPT, &HTMX, &SSE, &ICON];

impl Asset {
    /// Where a page finds it: a new content has a new address.
    pub fn url(&self) -> String {
        format!("/assets/{}?v={}", self.name, *self.hash)
    }
}

/// The version a page asks for.
#[derive(Debug, Deserialize)]
pub struct Version {
    v: Option<String>,
}

/// `GET /assets/{name}`.
pub async fn serve(
    name: web::Path<String>,
    version: web::Query<Version>,
    request: HttpRequest,
) -> Result<HttpResponse, PageError> {
    let asset = ALL.iter().find(|asset| asset.name == *name).ok_or_else(PageError::not_found)?;
    let tag = format!("\"{}\"", *asset.hash);
    // Another version's address must not keep this version's content for a year.
    let cache = if version.v.as_deref() == Some(asset.hash.as_str()) {
        "public, max-age=31536000, immutable"
    } else {
        "public, no-cache"
    };
    let known = request.headers().get(header::IF_NONE_MATCH).and_then(|value| value.to_str().ok());
    let mut response = if known.is_some_and(|known| known.split(',').any(|known| known.trim() == tag)) {
        HttpResponse::NotModified()
    } else {
        HttpResponse::Ok()
    };
    response.insert_header((header::ETAG, tag)).insert_header((header::CACHE_CONTROL, cache));
    if known.is_some_and(|known| known.contains(asset.hash.as_str())) {
        return Ok(response.finish());
    }
    Ok(response.content_type(asset.content_type).body(asset.content))
}
