//! The interface's own documentation as plain pages: rendered here, no script, nothing from elsewhere.

use std::fmt::Write as _;

use actix_web::HttpResponse;
use serde_json::Value;

use super::document::document;
use super::error_pages;
use crate::problem::Problem;

const STYLE: &str = include_str!("docs.css");

fn escape(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;").replace('"', "&quot;")
}

/// Text in which backticks mark code.
fn inline(text: &str) -> String {
    let mut html = String::new();
    for (index, part) in text.split('`').enumerate() {
        let part = escape(part);
        // Writing to a String does not fail.
        let _ = if index % 2 == 1 { write!(html, "<code>{part}</code>") } else { write!(html, "{part}") };
    }
    html
}

fn whole_page(title: &str, content: &str) -> HttpResponse {
    HttpResponse::Ok().content_type("text/html; charset=utf-8").body(format!(
        "<!doctype html><html lang=\"en\"><head><meta charset=\"utf-8\"><title>{} · Orchestra</title>\
         <meta name=\"viewport\" content=\"width=device-width\"><link rel=\"stylesheet\" href=\"/docs/style.css\">\
         </head><body><main>{content}</main></body></html>",
        escape(title)
    ))
}

fn text<'a>(value: &'a Value, name: &str) -> &'a str {
    value.get(name).and_then(Value::as_str).unwrap_or_default()
}

/// The word for a schema: its name, or its type.
fn shape(schema: &Value) -> String {
    if let Some(name) = schema.get("$ref").and_then(Value::as_str).and_then(|path| path.rsplit('/').next()) {
        return format!("<a href=\"#schema-{0}\">{0}</a>", escape(name));
    }
    if let Some(any) = schema.get("oneOf").or_else(|| schema.get("anyOf")).and_then(Value::as_array) {
        return any.iter().map(shape).collect::<Vec<_>>().join(" or ");
    }
    match schema.get("type") {
        Some(Value::String(kind)) if kind == "array" => {
            format!("list of {}", schema.get("items").map(shape).unwrap_or_default())
        }
        Some(Value::String(kind)) => escape(kind),
        Some(Value::Array(kinds)) => {
            kinds.iter().filter_map(Value::as_str).map(escape).collect::<Vec<_>>().join(" or ")
        }
        _ => "anything".to_owned(),
    }
}

fn content_types(value: &Value) -> String {
    let Some(content) = value.get("content").and_then(Value::as_object) else { return String::new() };
    content
        .iter()
        .map(|(kind, media)| {
            format!("<code>{}</code> {}", escape(kind), media.get("schema").map(shape).unwrap_or_default())
        })
        .collect::<Vec<_>>()
        .join(", ")
}

fn operation(html: &mut String, method: &str, path: &str, operation: &Value) {
    let _ = write!(html, "<section><h2><code>{} {}</code></h2>", method.to_uppercase(), escape(path));
    for paragraph in [text(operation, "summary"), text(operation, "description")] {
        if !paragraph.is_empty() {
            let _ = write!(html, "<p>{}</p>", inline(paragraph));
        }
    }
    if let Some(parameters) = operation.get("parameters").and_then(Value::as_array) {
        *html += "<table><tr><th>Parameter</th><th>In</th><th>Type</th><th></th></tr>";
        for parameter in parameters {
            let _ = write!(
                html,
                "<tr><td><code>{}</code></td><td>{}</td><td>{}</td><td>{}</td></tr>",
                escape(text(parameter, "name")),
                escape(text(parameter, "in")),
                parameter.get("schema").map(shape).unwrap_or_default(),
                inline(text(parameter, "description")),
            );
        }
        *html += "</table>";
    }
    if let Some(body) = operation.get("requestBody") {
        let _ = write!(html, "<p>Takes {}</p>", content_types(body));
    }
    if let Some(responses) = operation.get("responses").and_then(Value::as_object) {
        *html += "<ul>";
        for (status, response) in responses {
            let _ = write!(
                html,
                "<li><strong>{}</strong> {} {}</li>",
                escape(status),
                inline(text(response, "description")),
                content_types(response)
            );
        }
        *html += "</ul>";
    }
    *html += "</section>";
}

fn schemas(html: &mut String, document: &Value) {
    let Some(schemas) = document.pointer("/components/schemas").and_then(Value::as_object) else { return };
    *html += "<h1>Shapes</h1>";
    for (name, schema) in schemas {
        let _ = write!(
            html,
            "<section id=\"schema-{0}\"><h2>{0}</h2><p>{1}</p>",
            escape(name),
            inline(text(schema, "description"))
        );
        if let Some(properties) = schema.get("properties").and_then(Value::as_object) {
            *html += "<table>";
            for (name, property) in properties {
                let _ = write!(
                    html,
                    "<tr><td><code>{}</code></td><td>{}</td><td>{}</td></tr>",
                    escape(name),
                    shape(property),
                    inline(text(property, "description"))
                );
            }
            *html += "</table>";
        }
        *html += "</section>";
    }
}

/// The interface, path by path, and every error code.
#[utoipa::path(get, path = "/docs", tag = "operation", security(()),
    responses((status = 200, description = "A page", content_type = "text/html", body = String)))]
pub async fn index() -> Result<HttpResponse, Problem> {
    let document = document();
    let mut html = "<h1>The REST interface</h1><p>Send an API key as <code>Authorization: Bearer orc_…</code>. \
         The same as a machine reads it: <a href=\"/openapi.json\">/openapi.json</a>.</p>"
        .to_owned();
    if let Some(paths) = document.get("paths").and_then(Value::as_object) {
        for (path, methods) in paths {
            for (method, described) in methods.as_object().into_iter().flatten() {
                operation(&mut html, method, path, described);
            }
        }
    }
    schemas(&mut html, document);
    html += "<h1>Error codes</h1><ul>";
    for (code, _) in error_pages::PAGES {
        let _ = write!(html, "<li><a href=\"/docs/errors/{code}\">{code}</a></li>");
    }
    html += "</ul>";
    Ok(whole_page("The REST interface", &html))
}

/// How these pages look.
#[utoipa::path(get, path = "/docs/style.css", tag = "operation", security(()),
    responses((status = 200, description = "A style sheet", content_type = "text/css", body = String)))]
pub async fn style() -> HttpResponse {
    HttpResponse::Ok().content_type("text/css; charset=utf-8").body(STYLE)
}
