//! Undoes a compression that was not asked for, piece by piece.

use std::io::Write;

use flate2::write::{MultiGzDecoder, ZlibDecoder};
use hyper::header::{CONTENT_ENCODING, HeaderMap};

use crate::model::wire::Fault;

/// So many compressed bytes are expanded at once: deflate makes at most a thousand of one.
pub(super) const STEP: usize = 4 * 1024;

/// The body as it is meant.
pub(super) enum Decoder {
    Identity,
    Gzip(Box<MultiGzDecoder<Vec<u8>>>),
    Zlib(Box<ZlibDecoder<Vec<u8>>>),
}

impl Decoder {
    /// For an answer with these headers.
    pub fn new(headers: &HeaderMap) -> Result<Self, Fault> {
        let encoding = headers.get(CONTENT_ENCODING).map_or("identity", |value| value.to_str().unwrap_or("?"));
        match encoding.trim().to_ascii_lowercase().as_str() {
            "" | "identity" => Ok(Self::Identity),
            "gzip" | "x-gzip" => Ok(Self::Gzip(Box::new(MultiGzDecoder::new(Vec::new())))),
            "deflate" => Ok(Self::Zlib(Box::new(ZlibDecoder::new(Vec::new())))),
            _ => Err(Fault::malformed("answered in an encoding that was not asked for")),
        }
    }

    /// What a piece of at most [`STEP`] bytes stands for, as far as it is whole.
    pub fn decode<'a>(&'a mut self, piece: &'a [u8], into: &mut Vec<u8>) -> Result<(), Fault> {
        let broken = |_| Fault::malformed("sent a body that cannot be decompressed");
        match self {
            Self::Identity => into.extend_from_slice(piece),
            Self::Gzip(decoder) => {
                decoder.write_all(piece).and_then(|()| decoder.flush()).map_err(broken)?;
                into.append(decoder.get_mut());
            }
            Self::Zlib(decoder) => {
                decoder.write_all(piece).and_then(|()| decoder.flush()).map_err(broken)?;
                into.append(decoder.get_mut());
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use flate2::Compression;
    use flate2::write::GzEncoder;

    use super::*;

    #[test]
    fn what_is_whole_comes_out_at_once_whatever_the_pieces() {
        let text = "data: Zürich 🏔\n\n".repeat(500);
        let mut encoder = GzEncoder::new(Vec::new(), Compression::default());
        encoder.write_all(text.as_bytes()).expect("memory");
        let whole = encoder.finish().expect("memory");
        let headers = [(CONTENT_ENCODING, "gzip".parse().expect("header"))].into_iter().collect();
        for size in [1, 7, STEP] {
            let (mut decoder, mut out) = (Decoder::new(&headers).expect("known"), Vec::new());
            whole.chunks(size).for_each(|piece| decoder.decode(piece, &mut out).expect("gzip"));
            assert_eq!(out, text.as_bytes(), "by {size}");
        }
        // A flushed part is passed on before the rest is there.
        let mut encoder = GzEncoder::new(Vec::new(), Compression::default());
        encoder.write_all(b"first").expect("memory");
        encoder.flush().expect("memory");
        let (mut decoder, mut out) = (Decoder::new(&headers).expect("known"), Vec::new());
        decoder.decode(encoder.get_ref(), &mut out).expect("gzip");
        assert_eq!(out, b"first");
        assert!(Decoder::new(&headers).expect("known").decode(b"not gzip at all", &mut Vec::new()).is_err());
    }
}
