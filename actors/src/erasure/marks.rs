//! What is to be forgotten and is not yet: one empty file each, written before the event that promises it.
//!
//! After a crash, a mark whose stream has the event names something to be finished. One whose stream has none is of a request that
//! nobody was told was accepted, and goes.

use std::fs::{self, File};
use std::io;
use std::path::PathBuf;

use orchestra_events::StreamName;

/// The mark that the read models' file has to be written anew.
const TIDY: &str = "tidy";

/// The marks, in one folder.
#[derive(Debug, Clone)]
pub struct ErasureMarks {
    folder: PathBuf,
}

impl ErasureMarks {
    /// Marks in this folder, which is created.
    pub fn open(folder: PathBuf) -> io::Result<Self> {
        fs::create_dir_all(&folder)?;
        Ok(Self { folder })
    }

    /// Durably says that the words of a stream are to go, and with them what is left of them in the read models.
    pub(super) async fn set(&self, stream: &StreamName) -> io::Result<()> {
        let (folder, name) = (self.folder.clone(), stream.to_string());
        blocking(move || {
            for name in [TIDY, &name] {
                File::create(folder.join(name))?.sync_all()?;
            }
            File::open(folder)?.sync_all()
        })
        .await
    }

    /// The streams whose words are to go, and whether the read models have to be tidied.
    pub(super) async fn list(&self) -> io::Result<(Vec<StreamName>, bool)> {
        let folder = self.folder.clone();
        blocking(move || {
            let (mut streams, mut tidy) = (Vec::new(), false);
            for entry in fs::read_dir(folder)? {
                let name = entry?.file_name();
                tidy |= name == TIDY;
                // A file that is no stream's is not ours.
                streams.extend(name.to_str().and_then(|name| name.parse::<StreamName>().ok()));
            }
            streams.sort_unstable();
            Ok((streams, tidy))
        })
        .await
    }

    /// Says that the words of these streams are gone.
    pub(super) async fn clear(&self, streams: &[StreamName]) -> io::Result<()> {
        self.remove(streams.iter().map(StreamName::to_string).collect()).await
    }

    /// Says that the read models are tidy.
    pub(super) async fn clear_tidy(&self) -> io::Result<()> {
        self.remove(vec![TIDY.to_owned()]).await
    }

    async fn remove(&self, names: Vec<String>) -> io::Result<()> {
        let folder = self.folder.clone();
        blocking(move || {
            for name in names {
                match fs::remove_file(folder.join(name)) {
                    Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
                    _ => {}
                }
            }
            Ok(())
        })
        .await
    }
}

async fn blocking<T: Send + 'static>(work: impl FnOnce() -> io::Result<T> + Send + 'static) -> io::Result<T> {
    tokio::task::spawn_blocking(work).await.map_err(io::Error::other)?
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_mark_survives_until_it_is_cleared() {
        let folder = tempfile::tempdir().expect("a folder");
        let open = || ErasureMarks::open(folder.path().join("erasing")).expect("opened");
        let (one, two): (StreamName, StreamName) =
            ("task-1".parse().expect("a name"), "campaign-2".parse().expect("a name"));
        assert_eq!(open().list().await.expect("read"), (Vec::new(), false));
        open().set(&one).await.expect("marked");
        open().set(&two).await.expect("marked");
        open().set(&two).await.expect("marked again");
        fs::write(folder.path().join("erasing/.swap~"), "").expect("written");
        assert_eq!(open().list().await.expect("read"), (vec![two.clone(), one.clone()], true));
        open().clear(&[one.clone(), one]).await.expect("cleared");
        open().clear_tidy().await.expect("cleared");
        assert_eq!(open().list().await.expect("read"), (vec![two], false));
    }
}
