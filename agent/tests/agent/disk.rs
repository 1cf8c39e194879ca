//! A small ext4 disk of its own for a test: an image file on a loop device. What the image file holds is
//! what has reached the device; a copy of it is the disk after a power cut.

use std::fs;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use crate::harness::PATIENCE;

/// A mounted disk; unmounted and deleted when dropped.
pub(crate) struct Disk {
    image: PathBuf,
    directory: PathBuf,
}

impl Disk {
    /// Makes a disk of `mib` MiB in the directory `parent`.
    pub(crate) fn make(parent: &Path, name: &str, mib: u64) -> Self {
        let image = parent.join(format!("{name}.img"));
        fs::File::create(&image)
            .unwrap()
            .set_len(mib << 20)
            .unwrap();
        // Everything is initialised at once, and no block is kept for root.
        run(Command::new("mkfs.ext4")
            .args(["-q", "-F", "-m", "0"])
            .args(["-E", "lazy_itable_init=0,lazy_journal_init=0"])
            .arg(&image));
        Self::mount(image, parent.join(name))
    }

    fn mount(image: PathBuf, directory: PathBuf) -> Self {
        fs::create_dir_all(&directory).unwrap();
        run(Command::new("mount")
            .args(["-t", "ext4", "-o", "loop"])
            .arg(&image)
            .arg(&directory));
        Self { image, directory }
    }

    pub(crate) fn directory(&self) -> &Path {
        &self.directory
    }

    /// Returns the disk as a power cut now would leave it: what has not reached the device is gone.
    /// Nothing may be writing; writes under way are waited for.
    pub(crate) fn after_power_cut(&self, name: &str) -> Self {
        let deadline = std::time::Instant::now() + PATIENCE;
        let mut bytes = fs::read(&self.image).unwrap();
        loop {
            let again = fs::read(&self.image).unwrap();
            if bytes == again {
                break;
            }
            assert!(
                std::time::Instant::now() < deadline,
                "the device never rests"
            );
            bytes = again;
        }
        let image = self.image.with_file_name(format!("{name}.img"));
        let file = fs::File::create(&image).unwrap();
        file.set_len(bytes.len() as u64).unwrap();
        const BLOCK: usize = 64 * 1024;
        for (index, block) in bytes.chunks(BLOCK).enumerate() {
            if block.iter().any(|byte| *byte != 0) {
                file.write_all_at(block, (index * BLOCK) as u64).unwrap();
            }
        }
        Self::mount(image, self.directory.with_file_name(name))
    }

    /// Returns the bytes that are free.
    pub(crate) fn free_bytes(&self) -> u64 {
        let stat = rustix::fs::statvfs(&self.directory).unwrap();
        stat.f_bavail * stat.f_frsize
    }

    /// Takes all room that is left with the file `filler`; goes on where an earlier call ended.
    pub(crate) fn fill(&self) {
        let file = fs::OpenOptions::new()
            .create(true)
            .append(true)
            .open(self.filler())
            .unwrap();
        for size in [1 << 20, 4096, 512, 1] {
            while std::io::Write::write_all(&mut &file, &vec![b'f'; size]).is_ok() {}
        }
        // What is written late may still fail for want of room, which is as good.
        drop(file.sync_all());
    }

    /// Gives back what [`Self::fill`] took.
    pub(crate) fn clear(&self) {
        fs::remove_file(self.filler()).unwrap();
    }

    fn filler(&self) -> PathBuf {
        self.directory.join("filler")
    }
}

impl Drop for Disk {
    fn drop(&mut self) {
        // Lazily: a killed process may still hold files for a moment.
        let unmounted = Command::new("umount")
            .arg("-l")
            .arg(&self.directory)
            .status();
        if unmounted.is_ok_and(|status| status.success()) {
            drop(fs::remove_file(&self.image));
        }
    }
}

fn run(command: &mut Command) {
    let output = command.output().expect("mkfs.ext4 and mount are installed");
    assert!(
        output.status.success(),
        "{command:?} failed; this test needs root and loop devices: {}",
        String::from_utf8_lossy(&output.stderr)
    );
}
