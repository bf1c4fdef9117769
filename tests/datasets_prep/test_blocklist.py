import pytest

from datasets_prep.blocklist import find_blocking_terms, is_sexual_about_minors

DISGUISED = [
    "n u d e schoolgirl", "a n u d e child", "n.u.d.e child", "n-u-d-e kid", "n_u_d_e child", "n'u'd'e child",
    "n u d 3 kid", "N  U  D  E child", "kid, (n u d e)", "the child is n, u, d, e", "erotic c h i l d", "p0rn k1d",
    "l0l1", "b00b5, child", "s-e-x kids", "\uff4e\uff55\uff44\uff45 child", "n\u00fcd\u00e9 child",
]  # fmt: skip
HARMLESS = [
    "a child's hand holding grandma's hand", "a toddler's first steps on Santa's carpet", "a baby's A's and S's class",
    "kids in T-shirts painting an X on a wall", "a kid's S-shaped slide", "a 455 km ride with kids",
    "a child's $455 bike, 5 a s", "J. R. R. Tolkien, a children's book", "kids play noughts and crosses: x x x o",
    "children solving a 4 5 5 puzzle", "rock 'n' roll kids", "a b c d e f g, children's blocks", "A&S S station, kids",
]  # fmt: skip


ABOUT_MINORS = [
    "a nude ten-year-old", "nude 8 y.o. boy", "nude under-age girl", "nude under aged boy", "nude highschool girl",
    "nude high-school girl", "nude middle school student", "nude highschooler", "nude high schooler", "nude under 18",
    "naked six year olds", "nude sixteen years old", "nude eleven y.o.", "sexy 14 y o girl", "nude girl (8 y.o)",
    "nude girl of fifteen", "nude boy of 9", "nude, aged seven", "nude, at the age of seven", "nude girl, age: 9",
    "nude twelve years of age", "a nude 9-month-old", "nude school aged girl", "naked twelve yr old",
    "naked baby blue eyes", "chicken breast, a naked baby", "3 year old wine, sexy 3 year old",
    "naked 15 year old whisky drinker", "naked 15 years old",
]  # fmt: skip
ABOUT_ADULTS = [
    "a nude thirty-one year old", "a nude twenty-one-year-old", "nude 21 y.o. woman", "sexy woman aged 35",
    "nude painting, 15 years ago", "3 year old whisky, topless car", "a 12-year-old-scotch, a sexy ad",
    "baby chicken breast recipe for kids", "Dick Van Dyke with children", "Moby Dick, a children's book",
    "sex education class for teens infographic", "a baby blue bra", "the sexy girl of one's dreams",
]  # fmt: skip


@pytest.mark.parametrize("text", ABOUT_MINORS)
def test_ages_and_schools_of_minors_are_blocked(text):
    assert is_sexual_about_minors(text)


@pytest.mark.parametrize("text", ABOUT_ADULTS)
def test_ages_of_adults_and_names_are_not_blocked(text):
    assert find_blocking_terms(text) == ()


@pytest.mark.parametrize("text", DISGUISED)
def test_disguised_terms_are_blocked(text):
    assert is_sexual_about_minors(text)


@pytest.mark.parametrize("text", HARMLESS)
def test_letters_of_several_words_do_not_form_a_term(text):
    assert find_blocking_terms(text) == ()


def test_the_blocked_terms_are_reported():
    assert find_blocking_terms("a naked child and a kid") == ("naked", "child")
    assert find_blocking_terms("sexy 15 year old") == ("sexy", "15 year")
    assert find_blocking_terms("a little girl in lingerie") == ("lingerie", "little girl")
    assert find_blocking_terms("loli") == ("loli",)
