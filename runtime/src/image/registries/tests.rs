//! What is read, out of file systems that look like real ones, and out of hostile ones.

use std::fs;
use std::os::unix::fs::symlink;
use std::path::Path;

use super::*;

fn put(root: &Path, path: &str, content: impl AsRef<[u8]>) {
    let path = root.join(path);
    fs::create_dir_all(path.parent().expect("a folder")).expect("made");
    fs::write(path, content).expect("written");
}

fn hosts(root: &Path, env: &[(&str, &str)]) -> Vec<String> {
    let env = env.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect();
    read(root, &env).expect("reads").hosts.into_iter().collect()
}

#[test]
fn npms_default_is_read_from_its_code_unless_it_is_configured_away() {
    let dir = tempfile::tempdir().expect("a folder");
    let root = dir.path();
    let home = "usr/local/lib/node_modules/npm";
    put(root, &format!("{home}/package.json"), "{}");
    put(
        root,
        &format!("{home}/node_modules/@npmcli/config/lib/definitions/definitions.js"),
        "const definitions = {\n  registry: new Definition('registry', {\n    default: 'https://npm.example/',\n",
    );
    assert_eq!(hosts(root, &[]), ["npm.example"]);
    put(
        root,
        &format!("{home}/node_modules/npm-registry-fetch/lib/default-opts.js"),
        "  registry: 'https://fetch.example/',",
    );
    assert_eq!(hosts(root, &[]), ["fetch.example"]);
    put(
        root,
        "root/.npmrc",
        "@own:registry=https://own.example/npm/\nregistry = \"https://user.example\"\n//x/:_authToken=secret\n",
    );
    assert_eq!(hosts(root, &[]), ["fetch.example", "own.example", "user.example"]);
    put(root, "usr/local/etc/npmrc", "; comment\nregistry=http://mirror.example:4873/ # ours\n");
    assert_eq!(hosts(root, &[]), ["mirror.example:4873", "own.example", "user.example"]);
    fs::remove_file(root.join("usr/local/etc/npmrc")).expect("removed");
    assert_eq!(hosts(root, &[("NPM_CONFIG_REGISTRY", "https://env.example")]).len(), 3);
}

#[test]
fn pips_default_has_its_files_elsewhere_and_a_configured_index_replaces_both() {
    let dir = tempfile::tempdir().expect("a folder");
    let root = dir.path();
    assert!(hosts(root, &[("PIP_INDEX_URL", "https://nobody.example")]).is_empty(), "there is no pip");
    let code = "PyPI = PackageIndex(\"https://index.example/\", file_storage_domain=\"files.example\")\n\
                TestPyPI = PackageIndex(\n    \"https://test.example/\", file_storage_domain=\"test-files.example\"\n)\n";
    put(root, "usr/local/lib/python3.12/site-packages/pip/_internal/models/index.py", code);
    assert_eq!(hosts(root, &[]), ["files.example", "index.example"]);
    let questions = read(root, &BTreeMap::new()).expect("reads").questions;
    assert_eq!(questions, [Question::Pip("https://index.example/simple".to_owned())]);
    put(
        root,
        "etc/pip.conf",
        "[global]\nextra-index-url =\n    https://one.example/simple\n    https://two.example/simple\n",
    );
    assert_eq!(hosts(root, &[]), ["files.example", "index.example", "one.example", "two.example"]);
    assert_eq!(
        hosts(root, &[("PIP_INDEX_URL", "https://own.example/simple")]),
        ["one.example", "own.example", "two.example"]
    );
}

#[test]
fn a_pip_that_is_only_there_for_new_environments_is_read_out_of_its_wheel() {
    let dir = tempfile::tempdir().expect("a folder");
    let (name, code) = ("pip/_internal/models/index.py", b"PyPI = PackageIndex(\"https://index.example/\")\n");
    let mut packed = flate2::read::DeflateEncoder::new(&code[..], flate2::Compression::fast());
    let mut wheel = b"PK\x03\x04\x14\0\0\0\x08\0".to_vec();
    wheel.extend([0; 16]);
    wheel.extend(u16::try_from(name.len()).expect("short").to_le_bytes());
    wheel.extend([3, 0]);
    wheel.extend(name.as_bytes());
    wheel.extend(b"abc");
    io::copy(&mut packed, &mut wheel).expect("packed");
    wheel.extend(b"PK\x03\x04 and so on");
    put(dir.path(), "usr/share/python-wheels/pip-23.0.1-py3-none-any.whl", wheel);
    assert_eq!(hosts(dir.path(), &[]), ["index.example"]);
}

#[test]
fn cargos_index_is_read_from_its_program_and_replaced_by_its_configuration() {
    let dir = tempfile::tempdir().expect("a folder");
    let root = dir.path();
    put(root, "usr/local/cargo/bin/cargo", "the launcher");
    // Across the border between two pieces, and with something beside it that only looks like one.
    let mut program = vec![b'x'; (1 << 20) - 20];
    program.extend_from_slice(b"sparse+https://iints_inheritance:sparse+https://index.example/sparse+https://");
    put(root, "usr/local/rustup/toolchains/stable/bin/cargo", &program);
    assert_eq!(hosts(root, &[]), ["index.example"]);
    let questions = read(root, &BTreeMap::new()).expect("reads").questions;
    assert_eq!(questions, [Question::Cargo("sparse+https://index.example/".to_owned())]);
    let config = "[source.crates-io]\nreplace-with = \"own\"\n[source.own]\nregistry = \"sparse+https://own.example/index/\"\n\
                  [registries.team]\nindex = \"sparse+https://team.example:8443/\"\n";
    put(root, "usr/local/cargo/config.toml", config);
    assert_eq!(hosts(root, &[]), ["own.example", "team.example:8443"]);
    assert_eq!(hosts(root, &[("CARGO_REGISTRIES_MORE_INDEX", "sparse+https://more.example/")]).len(), 3);
}

#[test]
fn apts_two_formats_are_both_read() {
    let dir = tempfile::tempdir().expect("a folder");
    let root = dir.path();
    put(
        root,
        "etc/apt/sources.list",
        "# deb http://no.example x main\ndeb http://one.example/debian x main\ndeb [signed-by=/k arch=amd64] https://two.example x main\n\
         debug http://no.example x\ndeb-src http://three.example x main\ndeb mirror+file:/etc/apt/mirrors.list x main\n",
    );
    put(root, "etc/apt/mirrors.list", "https://mirror.example/debian\tpriority:1\n");
    put(
        root,
        "etc/apt/sources.list.d/x.sources",
        "Types: deb\nURIs: http://four.example/debian\n https://five.example:8443/\nSuites: x\n\nTypes: deb\nURIs: http://no.example\nEnabled: no\n",
    );
    put(root, "etc/apt/sources.list.d/y.sources.bak", "URIs: http://no.example\n");
    let expected =
        ["five.example:8443", "four.example", "mirror.example", "one.example", "three.example", "two.example"];
    assert_eq!(hosts(root, &[]), expected);
}

#[test]
fn uv_has_an_index_of_its_own() {
    let dir = tempfile::tempdir().expect("a folder");
    let program = "https://rare.example/simple https://often.example/simplehttps://often.example/simple";
    put(dir.path(), "usr/local/bin/uv", program);
    assert_eq!(hosts(dir.path(), &[]), ["often.example"]);
    let env = [("UV_DEFAULT_INDEX", "https://own.example/simple"), ("UV_INDEX", "team=https://team.example/simple")];
    assert_eq!(hosts(dir.path(), &env), ["own.example", "team.example"]);
}

#[test]
fn what_is_no_host_is_no_host() {
    for (address, expected) in [
        ("https://User:secret@Registry.Example./x", Some("registry.example")),
        ("https://registry.example:443/", Some("registry.example")),
        ("http://registry.example:8080/", Some("registry.example:8080")),
        ("sparse+https://registry.example/", Some("registry.example")),
        ("file:///etc/passwd", None),
        ("ftp://registry.example", None),
        ("https://[::1]/", None),
        ("https://*.example/", None),
        ("registry.example", None),
        ("", None),
    ] {
        assert_eq!(host(address).as_deref(), expected, "{address}");
    }
}

#[test]
fn a_hostile_image_makes_nobody_wait_and_names_a_bounded_number_of_hosts() {
    let (dir, outside) = (tempfile::tempdir().expect("a folder"), tempfile::tempdir().expect("a folder"));
    let root = dir.path();
    put(outside.path(), "sources.list", "deb http://outside.example x main\n");
    fs::create_dir_all(root.join("etc/apt/sources.list.d")).expect("made");
    symlink(outside.path().join("sources.list"), root.join("etc/apt/sources.list")).expect("linked");
    symlink("../../../../../../../../../../proc/self/root", root.join("etc/apt/sources.list.d/a.list"))
        .expect("linked");
    nix::unistd::mkfifo(&root.join("etc/apt/sources.list.d/b.list"), nix::sys::stat::Mode::from_bits_truncate(0o644))
        .expect("a pipe");
    symlink("c.list", root.join("etc/apt/sources.list.d/c.list")).expect("linked");
    let many: String = (0..10_000).map(|number| format!("deb http://h{number}.example x main\n")).collect();
    put(root, "etc/apt/sources.list.d/d.list", many);
    let found = hosts(root, &[]);
    assert_eq!(found.len(), MAX_HOSTS);
    assert!(!found.contains(&"outside.example".to_owned()));
}
