//! Write scalars that TensorBoard can show.
//!
//! An event file is a sequence of records, each `length (u64) · crc(length) · data · crc(data)`, little
//! endian, where the data are one `Event` message in protobuf's wire format. The three messages in use have
//! seven fields in all, so they are encoded here by hand rather than through a protobuf library.

use std::fs::File;
use std::io::{BufWriter, ErrorKind, Write};
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use crate::{Error, Result};

/// A TensorBoard event file that is being written.
///
/// Records are buffered; [`EventWriter::flush`] (or dropping the writer) hands them to the system.
#[derive(Debug)]
pub struct EventWriter {
    file: BufWriter<File>,
    path: PathBuf,
}

impl EventWriter {
    /// Start a new event file `events.out.tfevents.{seconds}.{host}.{pid}` in `dir`, which is made if missing.
    ///
    /// A resumed run starts another file beside the first: TensorBoard reads all of a directory's files as
    /// one history.
    ///
    /// # Errors
    ///
    /// [`Error::Io`] where the directory or the file cannot be made.
    pub fn create(dir: &Path) -> Result<Self> {
        std::fs::create_dir_all(dir).map_err(Error::io("create", dir))?;
        let name =
            format!("events.out.tfevents.{}.{}.{}", since_epoch().as_secs(), host(), std::process::id());
        let mut path = dir.join(&name);
        let mut taken = 0;
        let file = loop {
            match File::create_new(&path) {
                // Two writers of one process within a second: keep both histories.
                Err(error) if error.kind() == ErrorKind::AlreadyExists => {
                    taken += 1;
                    path = dir.join(format!("{name}.{taken}"));
                }
                other => break other.map_err(Error::io("create", &path))?,
            }
        };
        let mut writer = Self { file: BufWriter::new(file), path };
        // The version comes first, and by itself: readers reject the file otherwise.
        let mut event = Message::default();
        event.double(1, since_epoch().as_secs_f64());
        event.bytes(3, b"brain.Event:2");
        writer.record(&event.0)?;
        writer.flush()?;
        Ok(writer)
    }

    /// Return the file being written.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Add the value of the curve `tag` at `step`. TensorBoard keeps values as f32.
    ///
    /// # Errors
    ///
    /// [`Error::Io`] where the file cannot be written.
    pub fn scalar(&mut self, tag: &str, step: u64, value: f64) -> Result<()> {
        let mut entry = Message::default();
        entry.bytes(1, tag.as_bytes());
        entry.float(2, value as f32);
        let mut summary = Message::default();
        summary.bytes(1, &entry.0);
        let mut event = Message::default();
        event.double(1, since_epoch().as_secs_f64());
        event.uint(2, step);
        event.bytes(5, &summary.0);
        self.record(&event.0)
    }

    /// Hand what was added to the system, so that a running TensorBoard shows it.
    ///
    /// # Errors
    ///
    /// [`Error::Io`] where the file cannot be written.
    pub fn flush(&mut self) -> Result<()> {
        self.file.flush().map_err(Error::io("write", &self.path))
    }

    fn record(&mut self, data: &[u8]) -> Result<()> {
        let length = (data.len() as u64).to_le_bytes();
        let mut framed = Vec::with_capacity(data.len() + 16);
        framed.extend(length);
        framed.extend(masked(crc32c(&length)).to_le_bytes());
        framed.extend(data);
        framed.extend(masked(crc32c(data)).to_le_bytes());
        self.file.write_all(&framed).map_err(Error::io("write", &self.path))
    }
}

/// A protobuf message under construction: fields in wire format, one after the other.
#[derive(Default)]
struct Message(Vec<u8>);

impl Message {
    const VARINT: u64 = 0;
    const FIXED64: u64 = 1;
    const LENGTH_DELIMITED: u64 = 2;
    const FIXED32: u64 = 5;

    fn varint(&mut self, mut value: u64) {
        while value >= 0x80 {
            self.0.push(value as u8 | 0x80);
            value >>= 7;
        }
        self.0.push(value as u8);
    }

    fn key(&mut self, field: u64, wire_type: u64) {
        self.varint(field << 3 | wire_type);
    }

    fn uint(&mut self, field: u64, value: u64) {
        self.key(field, Self::VARINT);
        self.varint(value);
    }

    fn double(&mut self, field: u64, value: f64) {
        self.key(field, Self::FIXED64);
        self.0.extend(value.to_le_bytes());
    }

    fn float(&mut self, field: u64, value: f32) {
        self.key(field, Self::FIXED32);
        self.0.extend(value.to_le_bytes());
    }

    fn bytes(&mut self, field: u64, value: &[u8]) {
        self.key(field, Self::LENGTH_DELIMITED);
        self.varint(value.len() as u64);
        self.0.extend(value);
    }
}

fn since_epoch() -> Duration {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default()
}

/// The machine's name, made fit for a file name. It only tells files apart; a wrong guess does no harm.
fn host() -> String {
    let name = std::fs::read_to_string("/proc/sys/kernel/hostname")
        .or_else(|_| std::env::var("HOSTNAME"))
        .or_else(|_| std::env::var("COMPUTERNAME"))
        .unwrap_or_default();
    let clean: String =
        name.trim().chars().filter(|c| c.is_ascii_alphanumeric() || "-_".contains(*c)).take(64).collect();
    if clean.is_empty() { "localhost".into() } else { clean }
}

/// CRC-32C (Castagnoli), reflected, one table look-up a byte: records are a few dozen bytes.
fn crc32c(data: &[u8]) -> u32 {
    const TABLE: [u32; 256] = crc_table();
    !data.iter().fold(!0, |crc, byte| crc >> 8 ^ TABLE[usize::from(crc as u8 ^ byte)])
}

const fn crc_table() -> [u32; 256] {
    let mut table = [0; 256];
    let mut index = 0;
    while index < 256 {
        let mut crc = index as u32;
        let mut bit = 0;
        while bit < 8 {
            // The polynomial 0x1EDC6F41 with its bits reversed.
            crc = if crc & 1 == 1 { crc >> 1 ^ 0x82F6_3B78 } else { crc >> 1 };
            bit += 1;
        }
        table[index] = crc;
        index += 1;
    }
    table
}

/// TFRecord stores checksums rotated and offset, so that data which hold checksums themselves stay sound.
fn masked(crc: u32) -> u32 {
    crc.rotate_right(15).wrapping_add(0xA282_EAD8)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn crc32c_known_answers() {
        assert_eq!(crc32c(b""), 0);
        assert_eq!(crc32c(b"123456789"), 0xE306_9283);
        // From RFC 3720, appendix B.4.
        assert_eq!(crc32c(&[0; 32]), 0x8A91_36AA);
        assert_eq!(crc32c(&[0xFF; 32]), 0x62A8_AB43);
        assert_eq!(crc32c(&(0..32).collect::<Vec<u8>>()), 0x46DD_794E);
    }

    /// The same checksum bit by bit, so that the reader below does not trust the table it checks.
    fn crc_bitwise(data: &[u8]) -> u32 {
        let mut crc = u32::MAX;
        for byte in data {
            crc ^= u32::from(*byte);
            for _ in 0..8 {
                crc = (crc >> 1) ^ ((crc & 1) * 0x82F6_3B78);
            }
        }
        !crc
    }

    fn take<'a>(data: &mut &'a [u8], count: usize) -> &'a [u8] {
        let (head, tail) = data.split_at(count);
        *data = tail;
        head
    }

    fn records(mut file: &[u8]) -> Vec<Vec<u8>> {
        let check = |data: &[u8], stored: &[u8]| {
            let unmasked = u32::from_le_bytes(stored.try_into().unwrap()).wrapping_sub(0xA282_EAD8);
            assert_eq!(unmasked.rotate_left(15), crc_bitwise(data), "checksum");
        };
        let mut found = Vec::new();
        while !file.is_empty() {
            let length = take(&mut file, 8);
            check(length, take(&mut file, 4));
            let data = take(&mut file, u64::from_le_bytes(length.try_into().unwrap()) as usize);
            check(data, take(&mut file, 4));
            found.push(data.to_vec());
        }
        found
    }

    fn varint(data: &mut &[u8]) -> u64 {
        let mut value = 0;
        for shift in (0..).step_by(7) {
            let byte = take(data, 1)[0];
            value |= u64::from(byte & 0x7F) << shift;
            if byte < 0x80 {
                break;
            }
        }
        value
    }

    /// The fields of one message: number and raw value (a varint as eight bytes).
    fn fields(mut data: &[u8]) -> Vec<(u64, Vec<u8>)> {
        let mut found = Vec::new();
        while !data.is_empty() {
            let key = varint(&mut data);
            let value = match key & 7 {
                0 => varint(&mut data).to_le_bytes().to_vec(),
                1 => take(&mut data, 8).to_vec(),
                5 => take(&mut data, 4).to_vec(),
                2 => {
                    let length = varint(&mut data) as usize;
                    take(&mut data, length).to_vec()
                }
                other => panic!("wire type {other}"),
            };
            found.push((key >> 3, value));
        }
        found
    }

    #[test]
    fn scalars_read_back() {
        let dir = tempfile::tempdir().unwrap();
        let long = "x".repeat(300); // A length of more than one varint byte.
        let written =
            [("loss/train", 0, 2.5), ("top1", 127, -0.1), (&long, 1 << 40, 1e30), ("nan", 3, f64::NAN)];
        let mut writer = EventWriter::create(&dir.path().join("a/b")).unwrap();
        for (tag, step, value) in written {
            writer.scalar(tag, step, value).unwrap();
        }
        writer.flush().unwrap();

        let events = records(&std::fs::read(writer.path()).unwrap());
        let version = fields(&events[0]);
        assert_eq!(version.len(), 2);
        assert_eq!(version[1], (3, b"brain.Event:2".to_vec()));
        assert_eq!(events.len(), 1 + written.len());
        for ((tag, step, value), event) in written.iter().zip(&events[1..]) {
            let event = fields(event);
            assert_eq!(event.iter().map(|f| f.0).collect::<Vec<_>>(), [1, 2, 5]);
            let time = f64::from_le_bytes(event[0].1.clone().try_into().unwrap());
            assert!((since_epoch().as_secs_f64() - time).abs() < 600.0, "wall time {time}");
            assert_eq!(event[1].1, u64::to_le_bytes(*step));
            let summary = fields(&event[2].1);
            assert_eq!(summary.len(), 1);
            let entry = fields(&summary[0].1);
            assert_eq!(entry[0], (1, tag.as_bytes().to_vec()));
            assert_eq!(entry[1], (2, (*value as f32).to_le_bytes().to_vec()));
        }
    }

    #[test]
    fn writers_of_one_second_keep_their_own_files() {
        let dir = tempfile::tempdir().unwrap();
        let writers: Vec<_> = (0..3).map(|_| EventWriter::create(dir.path()).unwrap()).collect();
        assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), writers.len());
        for writer in &writers {
            assert!(writer.path().file_name().unwrap().to_str().unwrap().starts_with("events.out.tfevents."));
        }
    }
}
