//! Lists the pages of `docs/errors/` so that the server can carry them: a new file there is a new page here.

use std::fmt::Write as _;
use std::path::Path;
use std::{env, fs};

fn main() {
    let root = env::var("CARGO_MANIFEST_DIR").expect("cargo sets this");
    let folder = Path::new(&root).join("../docs/errors");
    println!("cargo::rerun-if-changed=build.rs");
    println!("cargo::rerun-if-changed={}", folder.display());
    // A checkout without the folder builds too: the codes themselves say what they mean.
    let mut pages: Vec<_> = fs::read_dir(&folder)
        .into_iter()
        .flatten()
        .filter_map(|entry| entry.ok().map(|entry| entry.path()))
        .filter(|path| path.extension().is_some_and(|extension| extension == "md"))
        .collect();
    pages.sort();
    let mut list = "&[".to_owned();
    for page in pages {
        let Some(code) = page.file_stem().and_then(|stem| stem.to_str()) else { continue };
        if code.chars().all(|letter| letter.is_ascii_lowercase() || letter.is_ascii_digit() || letter == '-') {
            writeln!(list, "({code:?}, include_str!({:?})),", page.display().to_string()).expect("a String takes it");
        }
    }
    list.push(']');
    let out = env::var("OUT_DIR").expect("cargo sets this");
    fs::write(Path::new(&out).join("error_pages.rs"), list).expect("the build folder takes a file");
}
