//! `progress`, the journal of a recovery. The checksum of each line is made right, so that what is behind it is reached.
#![no_main]

use libfuzzer_sys::fuzz_target;
use recovery::formats::journal::LineV2;
use recovery::recovery::procedure::Reading;
use recovery_fuzz::{Bytes, refused};

/// `,"sum":"01234567"}`
const SUM: usize = 18;

fuzz_target!(|lines: &[u8]| {
    read(lines);
    let summed = summed(lines);
    let Some(whole) = read(&summed) else { return };
    assert!(whole.records.iter().map(|record| record.sequence).eq(1..=whole.records.len() as u64));
    // What was read is what would be written.
    let lines_read = summed.split(|byte| *byte == b'\n').take(whole.records.len());
    let written: String = lines_read.map(|line| LineV2::of(line, None).expect("a line").to_text().expect("a line")).collect();
    let again = read(written.as_bytes()).expect("what was written");
    assert_eq!(
        (&again.records, &again.state, &again.beginning, &again.plan, again.torn()),
        (&whole.records, &whole.state, &whole.beginning, &whole.plan, 0)
    );
    // After a power cut anywhere in the last line, all before it is there.
    let last = written.trim_end().rfind('\n').map_or(0, |end| end + 1);
    let cut = last + lines.len() % (written.len() - last);
    match read(&written.as_bytes()[..cut]) {
        Some(before) => assert_eq!(before.records, whole.records[..whole.records.len() - 1]),
        None => assert_eq!(whole.records.len(), 1, "a line before the torn one is lost"),
    }
});

fn read(lines: &[u8]) -> Option<Reading> {
    match Reading::of(&Bytes::of(lines).path()) {
        Ok(reading) => reading,
        Err(error) => {
            refused(&error);
            None
        }
    }
}

/// The lines with their right checksums, where they have a form that can have one.
fn summed(lines: &[u8]) -> Vec<u8> {
    let mut all = Vec::with_capacity(lines.len() + SUM);
    for line in lines.split_inclusive(|byte| *byte == b'\n') {
        let (line, end) = line.strip_suffix(b"\n").map_or((line, &b""[..]), |line| (line, b"\n"));
        let at = line.len().saturating_sub(SUM);
        let content = if line[at..].starts_with(b",\"sum\":\"") { Some(&line[..at]) } else { line.strip_suffix(b"}") };
        match content {
            Some(content) => {
                let sum = crc32c::crc32c(&[content, b"}"].concat());
                all.extend_from_slice(content);
                all.extend_from_slice(format!(",\"sum\":\"{sum:08x}\"}}").as_bytes());
            }
            None => all.extend_from_slice(line),
        }
        all.extend_from_slice(end);
    }
    all
}
