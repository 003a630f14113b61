//! Markup that was already escaped when it was made, as a type of its own, so that no page marks text as safe by hand.

use std::fmt;

/// HTML made by one of our own templates.
#[derive(Debug, Clone, Default, PartialEq, Eq, Hash)]
pub struct Html(String);

impl Html {
    /// Takes over what a template with auto-escaping rendered. Never call it with anything else.
    pub(crate) fn from_template(rendered: String) -> Self {
        Self(rendered)
    }

    /// The markup.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for Html {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl askama::filters::HtmlSafe for Html {}
