//! A sandbox is a machine that starts, runs each command once, has no way out, outlives the server and leaves nothing
//! behind. Every test here runs real containers and needs root and an image named `default`.
#![allow(clippy::unwrap_used)]

mod ahead;
mod control_groups;
mod escape;
mod host;
mod ids;
mod isolation;
mod layers;
mod leftovers;
mod life;
mod limits;
mod rootless;
mod setups;
mod streams;
mod work_tree;
mod zygote;
