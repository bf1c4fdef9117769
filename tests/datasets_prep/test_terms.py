import pytest

from datasets_prep.terms import evidence, sexual_about_minors

SPELLED = [
    "n u d e schoolgirl", "a n u d e child", "n.u.d.e child", "n-u-d-e kid", "n_u_d_e child", "n'u'd'e child",
    "n u d 3 kid", "N  U  D  E child", "kid, (n u d e)", "the child is n, u, d, e", "erotic c h i l d", "p0rn k1d",
    "l0l1", "b00b5, child", "s-e-x kids", "\uff4e\uff55\uff44\uff45 child", "n\u00fcd\u00e9 child",
]  # fmt: skip
INNOCENT = [
    "a child's hand holding grandma's hand", "a toddler's first steps on Santa's carpet", "a baby's A's and S's class",
    "kids in T-shirts painting an X on a wall", "a kid's S-shaped slide", "a 455 km ride with kids",
    "a child's $455 bike, 5 a s", "J. R. R. Tolkien, a children's book", "kids play noughts and crosses: x x x o",
    "children solving a 4 5 5 puzzle", "rock 'n' roll kids", "a b c d e f g, children's blocks", "A&S S station, kids",
]  # fmt: skip


@pytest.mark.parametrize("text", SPELLED)
def test_a_term_in_disguise_is_a_term(text):
    assert sexual_about_minors(text)


@pytest.mark.parametrize("text", INNOCENT)
def test_letters_of_several_words_are_no_term(text):
    assert evidence(text) == ()


def test_the_evidence_is_the_terms_that_met():
    assert evidence("a naked child and a kid") == ("naked", "child")
    assert evidence("sexy 15 year old") == ("sexy", "15 year")
    assert evidence("a little girl in lingerie") == ("lingerie", "little girl")
    assert evidence("loli") == ("loli",)
