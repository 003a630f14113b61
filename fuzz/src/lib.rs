//! What each fuzz target does with its bytes: reads them as the server would, and asks of whatever was taken what the rest of
//! the code relies on. That nothing panics goes without saying.

mod headers;
mod pack_checks;
mod payload;
mod proxy_requests;
mod repo_refs;
mod sse_ids;

pub use headers::headers;
pub use pack_checks::pack_checks;
pub use payload::payload;
pub use proxy_requests::proxy_requests;
pub use repo_refs::repo_refs;
pub use sse_ids::sse_ids;
