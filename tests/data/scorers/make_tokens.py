"""Write tokens.json: ids from the SimpleTokenizer of open_clip 3.3.0.

python3.11 -m venv peer && peer/bin/pip install torch==2.13.0 torchvision==0.28.0 open_clip_torch==3.3.0
peer/bin/python tests/data/scorers/make_tokens.py
"""
# ruff: noqa: E402, RUF001

import json
from pathlib import Path

from scorer_material import PROMPTS
from torchvision_without_operators import define_operators

define_operators()  # before torchvision is imported
from open_clip.tokenizer import SimpleTokenizer

TEXTS = (
    *PROMPTS.values(),
    " \t\n ",
    "word " * 74 + "end",
    "word " * 75 + "end",
    "word " * 76 + "end",
    "it's I'M we'LL 'ſ don’t",
    "ﬁ ﬂ Å e\u0301 &eacute; e&#769; İstanbul ǅ ẞ ΑΣ",
    "&amp;lt;b&amp;gt; &lt;i&gt; &amp;amp;amp;",
    "<p> &amp;amp;amp; &amp;lt;i",  # ftfy leaves the escapes of a text with a tag
    "tab\tnew\nline\x1c\x85\u00a0\u2003\u3000x\u200bz\x00\x7f",
    "<start_of_text> a <END_of_text> b <|endoftext|>",
    "１２３ ½ ² Ⅷ ٣ 1234",
    "\U00018e32\U0001916b𒋛 \U00013657",  # letters that are new in Unicode
    "--ar 3:2 ::0.5 {a,b} http://x.y/z?q=1&amp;r=2",
)


def main() -> None:
    tokenizer = SimpleTokenizer()
    rows = [{"text": text, "ids": tokenizer([text])[0].tolist()} for text in TEXTS]
    lines = ",\n".join(json.dumps(row, ensure_ascii=True) for row in rows)
    (Path(__file__).parent / "tokens.json").write_text(f"[\n{lines}\n]\n")


if __name__ == "__main__":
    main()
