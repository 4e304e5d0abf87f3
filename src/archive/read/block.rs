//! One header block of a tar stream.

use anyhow::Result;

use crate::archive::tar::BLOCK;
use crate::compression::is_tar;
use crate::error::damaged;

/// The fields of one header block.
pub(super) struct Raw {
    pub(super) name: Vec<u8>,
    pub(super) mode: u32,
    pub(super) uid: u32,
    pub(super) gid: u32,
    pub(super) size: u64,
    pub(super) mtime: i64,
    pub(super) kind: u8,
    pub(super) target: Vec<u8>,
    pub(super) device: (u32, u32),
}

impl Raw {
    /// Reads a block.
    ///
    /// # Errors
    /// `FailureKind::Damaged` when its checksum is wrong, or one of its numbers is invalid.
    pub(super) fn of(block: &[u8; BLOCK]) -> Result<Self> {
        if !is_tar(block) {
            return Err(damaged("the archive is damaged: the checksum of a tar header is wrong"));
        }
        let id = |field: &[u8]| number(field).and_then(|n| u32::try_from(n).map_err(|_| bad_number(field)));
        // GNU tar's own format ends its magic with blanks, and has other fields in place of the prefix. The version is ignored by every
        // tar, and many write something else there.
        let posix = block[257..].starts_with(b"ustar") && block[257..265] != *b"ustar  \0";
        let mut name = text(&block[..100]).to_vec();
        let prefix = text(&block[345..500]);
        if posix && !prefix.is_empty() {
            name = [prefix, b"/", &name[..]].concat();
        }
        let kind = block[156];
        // Only devices have these numbers; for other entries, old archives may have anything there.
        let device = if matches!(kind, b'3' | b'4') { (id(&block[329..337])?, id(&block[337..345])?) } else { (0, 0) };
        Ok(Self {
            name,
            mode: id(&block[100..108])?,
            uid: id(&block[108..116])?,
            gid: id(&block[116..124])?,
            size: u64::try_from(number(&block[124..136])?).map_err(|_| bad_number(&block[124..136]))?,
            mtime: number(&block[136..148])?,
            kind,
            target: text(&block[157..257]).to_vec(),
            device,
        })
    }
}

fn text(field: &[u8]) -> &[u8] {
    field.split(|b| *b == 0).next().unwrap_or_default()
}

fn bad_number(field: &[u8]) -> anyhow::Error {
    damaged(format!("the archive is hostile or damaged: {:?} in a tar header is not a number in range", field.escape_ascii().to_string()))
}

/// A number: octal digits between blanks or zeros, or GNU tar's base 256, marked by the highest bit.
fn number(field: &[u8]) -> Result<i64> {
    let bad = || bad_number(field);
    let (first, rest) = field.split_first().ok_or_else(bad)?;
    if first & 0x80 != 0 {
        let mut value = i64::from(if first & 0x40 != 0 { -1_i8 } else { 0 });
        for byte in std::iter::once(first & 0x3F | if first & 0x40 != 0 { 0xC0 } else { 0 }).chain(rest.iter().copied()) {
            value = value.checked_mul(256).and_then(|v| v.checked_add(i64::from(byte))).ok_or_else(bad)?;
        }
        return Ok(value);
    }
    let digits = field.trim_ascii_start();
    let end = digits.iter().position(|b| matches!(b, b' ' | 0)).unwrap_or(digits.len());
    if digits[end..].iter().any(|b| !matches!(b, b' ' | 0)) {
        return Err(bad());
    }
    digits[..end].iter().try_fold(0_i64, |value, digit| match digit {
        b'0'..=b'7' => value.checked_mul(8).and_then(|v| v.checked_add(i64::from(digit - b'0'))).ok_or_else(bad),
        _ => Err(bad()),
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::error::exit_code;

    #[test]
    fn numbers_out_of_range_are_refused() {
        for field in [&b"12x\0"[..], b"8\0", b"1 1 ", b"7777777777777777777777777\0", b"\x80\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff"] {
            assert_eq!(exit_code(&number(field).unwrap_err()), 65, "{field:?}");
        }
        assert_eq!(number(b"\0\0\0").unwrap(), 0);
        assert_eq!(number(b" 755 ").unwrap(), 0o755);
        assert_eq!(number(b"\x80\0\0\0\0\0\x01\0").unwrap(), 256);
        assert_eq!(number(b"\xff\xff\xff\xff\xff\xff\xff\xfe").unwrap(), -2);
    }
}
