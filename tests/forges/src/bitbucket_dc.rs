//! A stand-in of Bitbucket's REST interface.

use serde_json::json;

use crate::fake::{Dialect, Reply};

pub(crate) fn dialect() -> Dialect {
    let error = |status, message: &str| Reply::new(status, json!({ "message": message }));
    Dialect {
        root: "",
        description: include_str!("../specs/bitbucket-dc.json"),
        answer: |_, _, _| Reply::new(404, json!({})),
        error,
        limited: |_| Reply::new(429, json!({})),
    }
}
