//! One actor per open task, and those that supervise, schedule, project and clean up.

pub mod service;

pub use service::{Credentials, Delta, FieldError, NewTask, Submitted, TaskService};
