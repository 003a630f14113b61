//! The REST interface, one file per resource.

pub mod body;
pub mod budgets;
pub mod campaign_payload;
pub mod campaign_resource;
pub mod campaigns;
pub mod docs;
pub mod document;
pub mod endpoints;
pub mod error_pages;
pub mod events;
pub mod fields;
pub mod health;
pub mod keys;
pub mod once;
pub mod openapi;
pub mod payload;
pub mod query;
pub mod repeat;
pub mod resource;
pub mod rules;
pub mod sandbox_usage;
pub mod task_actions;
pub mod tasks;
pub mod usage;
pub mod webhook_resource;
pub mod webhooks;
