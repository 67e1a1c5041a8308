//! An ext4 with a journal, on a loop device, where the root has none.

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::Command;

/// Unmounted and removed when it is dropped.
pub struct LoopDisk {
    pub path: PathBuf,
    image: PathBuf,
}

const OCTETS: u64 = 2 << 30;

impl LoopDisk {
    /// Makes and mounts it in `parent`.
    ///
    /// # Errors
    /// What is missing for it, as the rights.
    pub fn new(parent: &Path) -> Result<Self, String> {
        if !rustix::process::geteuid().is_root() {
            return Err("only root may mount it".to_owned());
        }
        let disk = Self { path: parent.join("journal"), image: parent.join("journal.image") };
        // Of a run that was killed.
        let _ = Command::new("umount").arg(&disk.path).output();
        let make = || {
            fs::create_dir_all(&disk.path)?;
            File::create(&disk.image)?.set_len(OCTETS)
        };
        make().map_err(|error| error.to_string())?;
        run(Command::new("mkfs.ext4").args(["-q", "-F", "-E", "lazy_itable_init=0"]).arg(&disk.image))?;
        run(Command::new("mount").args(["-o", "loop"]).args([&disk.image, &disk.path]))?;
        Ok(disk)
    }
}

fn run(command: &mut Command) -> Result<(), String> {
    let program = command.get_program().to_string_lossy().into_owned();
    match command.output() {
        Ok(output) if output.status.success() => Ok(()),
        Ok(output) => Err(format!("{program}: {}", String::from_utf8_lossy(&output.stderr).trim())),
        Err(error) => Err(format!("{program}: {error}")),
    }
}

impl Drop for LoopDisk {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg(&self.path).output();
        let _ = fs::remove_file(&self.image);
        let _ = fs::remove_dir(&self.path);
    }
}
