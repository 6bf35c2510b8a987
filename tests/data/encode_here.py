"""A decoding pool without servers, for tests whose matter is not decoding: nothing has to start."""

from brine.data.document import DocumentError, Quarantined
from brine.data.encode import encode
from brine.data.files.roots import root_from_json
from brine.data.media.pool import DecodePool, EncodeResult
from brine.data.tokenizer import Tokenizer


class Here(DecodePool):
    """Encodes in this process: no server has to start."""

    def encode(self, documents):
        for document in documents:
            if isinstance(document, Quarantined):
                yield document
                continue
            try:
                found = encode(
                    document,
                    root=root_from_json(self._handshake["root"]),
                    tokenizer=Tokenizer.from_str(self._handshake["tokenizer"]),
                    config=self.config,
                )
                yield EncodeResult(document, found, found.crc32(), None)
            except DocumentError as error:
                yield EncodeResult(document, None, 0, Quarantined(document.id, "", str(error)))
