"""A decoding pool without servers, for tests whose matter is not decoding: nothing has to start."""

from pathlib import Path

from data.decode_pool import DecodePool, Encoded
from data.document import DocumentError, Quarantined
from data.encode import encode
from data.tokenizer import Tokenizer


class Here(DecodePool):
    """Encodes in this process: no server has to start."""

    def encode(self, documents):
        for document in documents:
            try:
                found = encode(
                    document,
                    root=Path(self._hello["root"]),
                    tokenizer=Tokenizer.from_str(self._hello["tokenizer"]),
                    config=self.config,
                )
                yield Encoded(document, found, found.crc32(), None)
            except DocumentError as error:
                yield Encoded(document, None, 0, Quarantined(document.id, "", str(error)))
