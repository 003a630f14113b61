//! Makes a root file system out of another without copying it.

use std::fs::{self, DirBuilder};
use std::os::unix::fs::{DirBuilderExt, MetadataExt, PermissionsExt, chown};
use std::path::{Path, PathBuf};

use super::ImageError;

/// Makes `to` the same tree as `from`: directories anew, everything else as another name of the same file.
///
/// Nothing writes to a file of an image: a sandbox's writes go to a layer of its own, and who puts something into a root file
/// system that is being made removes the old name first.
pub fn derive(from: &Path, to: &Path) -> Result<(), ImageError> {
    let mut open = vec![PathBuf::new()];
    while let Some(inside) = open.pop() {
        let (old, new) = (from.join(&inside), to.join(&inside));
        let deriving = || ImageError::io("deriving from", &old);
        let meta = fs::symlink_metadata(&old).map_err(deriving())?;
        DirBuilder::new().mode(0o700).create(&new).map_err(ImageError::io("making", &new))?;
        for entry in fs::read_dir(&old).map_err(deriving())? {
            let entry = entry.map_err(deriving())?;
            if entry.file_type().map_err(deriving())?.is_dir() {
                open.push(inside.join(entry.file_name()));
            } else {
                let new = new.join(entry.file_name());
                // Neither name is followed: what is a symbolic link becomes another name of that link.
                fs::hard_link(entry.path(), &new).map_err(ImageError::io("linking", &new))?;
            }
        }
        let finishing = || ImageError::io("making", &new);
        chown(&new, Some(meta.uid()), Some(meta.gid())).map_err(finishing())?;
        fs::set_permissions(&new, fs::Permissions::from_mode(meta.mode() & 0o7777)).map_err(finishing())?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;

    use super::*;

    #[test]
    fn a_derived_tree_is_the_same_and_a_replaced_file_changes_only_there() {
        let dir = tempfile::tempdir().unwrap();
        let (from, to) = (dir.path().join("from"), dir.path().join("to"));
        fs::create_dir_all(from.join("usr/lib")).unwrap();
        fs::create_dir(from.join("tmp")).unwrap();
        fs::set_permissions(from.join("tmp"), fs::Permissions::from_mode(0o1777)).unwrap();
        fs::write(from.join("usr/lib/file"), "below").unwrap();
        symlink("/etc/passwd", from.join("link")).unwrap();
        symlink("usr/lib", from.join("lib")).unwrap();
        derive(&from, &to).unwrap();
        assert_eq!(fs::metadata(to.join("tmp")).unwrap().mode() & 0o7777, 0o1777);
        assert_eq!(fs::read_link(to.join("link")).unwrap(), Path::new("/etc/passwd"));
        assert!(fs::symlink_metadata(to.join("lib")).unwrap().is_symlink());
        let inode = |path: PathBuf| fs::metadata(path).unwrap().ino();
        assert_eq!(inode(from.join("usr/lib/file")), inode(to.join("usr/lib/file")));

        let root = super::super::unpack::Root::open(&to).unwrap();
        root.write_file(Path::new("usr/lib/file"), 0o644, &mut &b"above"[..]).unwrap();
        assert_eq!(fs::read_to_string(from.join("usr/lib/file")).unwrap(), "below");
        assert_eq!(fs::read_to_string(to.join("usr/lib/file")).unwrap(), "above");
    }
}
