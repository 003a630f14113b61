//! Makes an image trust the certificate authorities that this machine's own administrator has added, where registries are
//! behind a private one.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::{self, Read};
use std::path::{Path, PathBuf};

use sha2::{Digest, Sha256};

use super::ImageError;
use super::layer::hexadecimal;
use super::unpack::Root;

/// Where Debian's administrators put them, on the host and in the image.
const FOLDER: &str = "/usr/local/share/ca-certificates";
/// What programs read: all authorities in one file.
const BUNDLE: &str = "etc/ssl/certs/ca-certificates.crt";
/// Most authorities, and the bytes of each and of the bundle.
const MAX_AUTHORITIES: usize = 64;
const MAX_AUTHORITY: u64 = 64 << 10;
const MAX_BUNDLE: u64 = 8 << 20;
const BEGIN: &str = "-----BEGIN CERTIFICATE-----";
const END: &str = "-----END CERTIFICATE-----";
/// The variables by which programs that bring authorities of their own are told to use the image's: OpenSSL, Node.js, two of
/// Python's, cargo, git and curl.
const VARIABLES: &[&str] = &[
    "SSL_CERT_FILE",
    "NODE_EXTRA_CA_CERTS",
    "PIP_CERT",
    "REQUESTS_CA_BUNDLE",
    "CARGO_HTTP_CAINFO",
    "GIT_SSL_CAINFO",
    "CURL_CA_BUNDLE",
];

/// The host's own authorities.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Authorities(BTreeMap<String, String>);

impl Authorities {
    /// Those of this machine.
    ///
    /// # Errors
    /// When there are none, or too many, or one of them is no certificate.
    pub fn of_host() -> Result<Self, ImageError> {
        Self::of(Path::new(FOLDER))
    }

    fn of(folder: &Path) -> Result<Self, ImageError> {
        let reading = || ImageError::io("reading the host's certificate authorities in", folder);
        let mut found = BTreeMap::new();
        for entry in fs::read_dir(folder).map_err(reading())? {
            let path = entry.map_err(reading())?.path();
            if path.extension().is_none_or(|extension| extension != "crt") {
                continue;
            }
            let mut text = String::new();
            let read = File::open(&path).and_then(|file| file.take(MAX_AUTHORITY).read_to_string(&mut text));
            read.map_err(ImageError::io("reading", &path))?;
            let certificates = certificates(&text);
            if certificates.is_empty() {
                return Err(ImageError::io("reading", &path)(io::Error::other("there is no certificate in it")));
            }
            let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
            found.insert(name, certificates.concat());
        }
        if found.is_empty() || found.len() > MAX_AUTHORITIES {
            let detail = format!("there are {} of them; 1 to {MAX_AUTHORITIES} are taken", found.len());
            return Err(reading()(io::Error::other(detail)));
        }
        Ok(Self(found))
    }

    /// What they are, for the digest of an image's inputs.
    pub fn fingerprint(&self) -> String {
        let mut digest = Sha256::new();
        for (name, text) in &self.0 {
            digest.update(format!("{name}\n{text}\n"));
        }
        hexadecimal(digest)
    }

    /// Puts them into a root file system.
    pub fn install(&self, rootfs: &Path) -> Result<(), ImageError> {
        let installing = || ImageError::io("adding certificate authorities to", rootfs);
        let root = Root::open(rootfs).map_err(installing())?;
        let mut bundle = root.read(Path::new(BUNDLE), MAX_BUNDLE).map_err(installing())?;
        for (name, text) in &self.0 {
            let path = PathBuf::from(FOLDER.trim_start_matches('/')).join(name);
            root.write_file(&path, 0o644, &mut text.as_bytes()).map_err(installing())?;
            if !bundle.windows(text.len()).any(|window| window == text.as_bytes()) {
                if !bundle.ends_with(b"\n") && !bundle.is_empty() {
                    bundle.push(b'\n');
                }
                bundle.extend_from_slice(text.as_bytes());
            }
        }
        root.write_file(Path::new(BUNDLE), 0o644, &mut bundle.as_slice()).map_err(installing())?;
        Ok(())
    }

    /// The variables that make programs use them.
    pub fn variables() -> BTreeMap<String, String> {
        VARIABLES.iter().map(|name| ((*name).to_owned(), format!("/{BUNDLE}"))).collect()
    }
}

/// The certificates of a text, without what else is in it: a private key that somebody has left there stays there.
fn certificates(text: &str) -> Vec<String> {
    let blocks = text.split(BEGIN).skip(1).filter_map(|rest| rest.split_once(END));
    let plain = |body: &str| body.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"+/=\r\n \t".contains(&byte));
    blocks.filter(|(body, _)| plain(body)).map(|(body, _)| format!("{BEGIN}\n{}\n{END}\n", body.trim())).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_hosts_authorities_are_added_once_and_a_key_beside_one_is_not() {
        let host = tempfile::tempdir().expect("a folder");
        let own = format!("{BEGIN}\nQUJD\n{END}\n-----BEGIN PRIVATE KEY-----\nU0VDUkVU\n-----END PRIVATE KEY-----\n");
        fs::write(host.path().join("own.crt"), own).expect("written");
        fs::write(host.path().join("README"), "no authority").expect("written");
        let authorities = Authorities::of(host.path()).expect("one");
        let rootfs = tempfile::tempdir().expect("a folder");
        fs::create_dir_all(rootfs.path().join("etc/ssl/certs")).expect("made");
        fs::write(rootfs.path().join(BUNDLE), format!("{BEGIN}\nMTIz\n{END}")).expect("written");
        authorities.install(rootfs.path()).expect("installed");
        authorities.install(rootfs.path()).expect("installed again");
        let bundle = fs::read_to_string(rootfs.path().join(BUNDLE)).expect("there");
        assert_eq!(bundle.matches("QUJD").count(), 1, "{bundle}");
        assert!(bundle.contains("MTIz") && !bundle.contains("U0VDUkVU") && !bundle.contains("PRIVATE"), "{bundle}");
        let copied = fs::read_to_string(rootfs.path().join("usr/local/share/ca-certificates/own.crt")).expect("there");
        assert!(!copied.contains("U0VDUkVU"), "{copied}");
    }

    #[test]
    fn a_link_in_the_image_does_not_lead_outside_of_it() {
        let (host, outside) = (tempfile::tempdir().expect("a folder"), tempfile::tempdir().expect("a folder"));
        fs::write(host.path().join("own.crt"), format!("{BEGIN}\nQUJD\n{END}\n")).expect("written");
        fs::write(outside.path().join("ca-certificates.crt"), "precious").expect("written");
        let rootfs = tempfile::tempdir().expect("a folder");
        fs::create_dir_all(rootfs.path().join("etc/ssl")).expect("made");
        std::os::unix::fs::symlink(outside.path(), rootfs.path().join("etc/ssl/certs")).expect("linked");
        let _ = Authorities::of(host.path()).expect("one").install(rootfs.path());
        assert_eq!(fs::read_to_string(outside.path().join("ca-certificates.crt")).expect("there"), "precious");
    }
}
