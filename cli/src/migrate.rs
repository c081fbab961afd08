//! `podbay migrate FILE`: a `kuberun` configuration becomes one of `kubernetes`.

use crate::check;
use anyhow::{Context as _, bail};
use podbay_backend_core::migrate::migrate;
use podbay_runtime::config::Document;
use std::{
    fs,
    io::{self, Write as _},
    os::unix::fs::{MetadataExt as _, OpenOptionsExt as _, PermissionsExt as _, fchown},
    path::{Path, PathBuf},
    process::ExitCode,
};

/// There is something to migrate (`--check`).
const OUTDATED: u8 = 1;
/// Mistakes in the file.
const WRONG: u8 = 2;

#[derive(Debug, clap::Args)]
pub struct Arguments {
    /// A configuration file (YAML or JSON) with a section kuberun, as ContainerSSH 0.3 and 0.4 have it.
    file: PathBuf,
    /// Write the new file in place of the old, which is kept beside it as FILE.bak. Without: on stdout.
    #[arg(long, conflicts_with = "check")]
    in_place: bool,
    /// Only say whether there is something to migrate: exit 1 where there is, 0 where not, 2 where the file has mistakes.
    #[arg(long)]
    check: bool,
}

/// Migrates; what changed and why goes to stderr.
pub fn main(arguments: &Arguments) -> anyhow::Result<ExitCode> {
    let file = &arguments.file;
    let name = file.display().to_string();
    // Exit 1 is --check's answer: what can't be read is wrong, like what can't be understood.
    let (old, migration) = match Document::text_of(file).and_then(|old| Ok((migrate(&name, &old)?, old))) {
        Ok((migration, old)) => (old, migration),
        Err(mistakes) => {
            eprintln!("{mistakes}");
            return Ok(ExitCode::from(WRONG));
        }
    };
    for change in &migration.changes {
        eprintln!("{name}: {change}");
    }
    let Some(new) = migration.text else {
        eprintln!("{name}: there is nothing to migrate");
        if !arguments.check && !arguments.in_place {
            print!("{old}");
        }
        return Ok(ExitCode::SUCCESS);
    };
    if arguments.check {
        return Ok(ExitCode::from(OUTDATED));
    }
    // Mistakes that are left were there before, in other sections: they are told, and the new file is no worse.
    if let Ok(document) = Document::parse(&name, &new) {
        for mistake in check::check(document).mistakes {
            eprintln!("still to do, as of the new file's lines: {mistake}");
        }
    }
    if arguments.in_place {
        replace(file, &new)?;
    } else {
        print!("{new}");
    }
    Ok(ExitCode::SUCCESS)
}

/// The old file stays as FILE.bak; a crash leaves either the old or the new one, whole. What is there already under one of the two names is
/// neither written to nor followed: in a directory that others can write to it may be a link.
fn replace(file: &Path, new: &str) -> anyhow::Result<()> {
    // Behind a link is the file; the link stays one.
    let file = &fs::canonicalize(file).with_context(|| format!("can't find {}", file.display()))?;
    let beside = |ending: &str| {
        let mut name = file.as_os_str().to_owned();
        name.push(ending);
        PathBuf::from(name)
    };
    let (backup, fresh) = (beside(".bak"), beside(".new"));
    for path in [&backup, &fresh] {
        if fs::symlink_metadata(path).is_ok() {
            bail!("{} is there already: move it away first", path.display());
        }
    }
    let read = || Ok::<_, io::Error>((fs::metadata(file)?, fs::read(file)?));
    let (meta, old) = read().with_context(|| format!("can't read {}", file.display()))?;
    write_new(&fresh, new.as_bytes(), &meta).with_context(|| format!("can't write {}", fresh.display()))?;
    let replaced =
        write_new(&backup, &old, &meta).with_context(|| format!("can't write {}", backup.display())).and_then(|()| {
            fs::rename(&fresh, file)
                .with_context(|| format!("can't replace {}; the old one is there still", file.display()))
        });
    if replaced.is_err() {
        let _ = fs::remove_file(&fresh);
    }
    replaced?;
    eprintln!("{}: written; the old one is {}", file.display(), backup.display());
    Ok(())
}

/// Makes a file with owner and mode of another: it may hold secrets. Where the owner can't be kept, its group gets no rights.
fn write_new(path: &Path, bytes: &[u8], like: &fs::Metadata) -> io::Result<()> {
    let mut out = fs::OpenOptions::new().write(true).create_new(true).mode(0o600).open(path)?;
    let kept = fchown(&out, Some(like.uid()), Some(like.gid())).is_ok();
    let mode = like.mode() & if kept { 0o777 } else { 0o707 };
    out.set_permissions(fs::Permissions::from_mode(mode))?;
    out.write_all(bytes)?;
    out.sync_all()
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::symlink;

    #[test]
    fn links_that_lie_in_wait_are_not_followed() {
        for name in ["config.yaml.bak", "config.yaml.new"] {
            let dir = tempfile::tempdir().expect("a directory");
            let (file, target) = (dir.path().join("config.yaml"), dir.path().join("elsewhere"));
            fs::write(&file, "old: secret").expect("writes");
            symlink(&target, dir.path().join(name)).expect("a link");
            let error = replace(&file, "new: secret").expect_err(name).to_string();
            assert!(error.contains("is there already"), "{error}");
            assert!(!target.exists(), "{name}: written through the link");
            assert_eq!(fs::read_to_string(&file).expect("reads"), "old: secret");
        }
    }

    #[test]
    fn both_files_have_the_rights_of_the_old_one() {
        let dir = tempfile::tempdir().expect("a directory");
        let file = dir.path().join("config.yaml");
        fs::write(&file, "old").expect("writes");
        fs::set_permissions(&file, fs::Permissions::from_mode(0o640)).expect("sets");
        let owner = fs::metadata(&file).expect("there").uid();
        replace(&file, "new").expect("replaces");
        for (name, text) in [("config.yaml", "new"), ("config.yaml.bak", "old")] {
            let path = dir.path().join(name);
            let meta = fs::metadata(&path).expect("there");
            assert_eq!((meta.mode() & 0o777, meta.uid()), (0o640, owner), "{name}");
            assert_eq!(fs::read_to_string(&path).expect("reads"), text);
        }
        assert_eq!(fs::read_dir(dir.path()).expect("lists").count(), 2, "a draft is left");
    }
}
