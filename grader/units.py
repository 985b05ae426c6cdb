"""What words after a number mean: units, which may be left out but must not differ; nouns, which say nothing; and words
that change the value, which are refused.
"""

import re
from fractions import Fraction

from grader.text import Refused, table
from grader.tree import Node, num, product

UNIT_NAMES = table(
    """m meter metre 米  cm centimeter centimetre 厘米  mm millimeter 毫米  km kilometer kilometre 千米 公里
    in in inch inche  ft ft foot feet  yd yd yard  mi mi mile  s sec second 秒  min min minute 分钟
    h h hr hour 小时  day day 天  week week  month month  yr yr year 年  g gram 克  kg kilogram 千克 公斤
    lb lb pound  oz oz ounce  ° degree deg 度  rad radian  % pct percent percentage  $ dollar 元 美元  ¢ ¢ cent
    Hz hz hertz  J joule  N newton  W watt  V volt  K kelvin  Ω ohm  am am  pm pm  L liter litre  ml ml milliliter
    arcmin arcminute  arcsec arcsecond  NONE unit 个 名 人 种 次 只 本 条 张 辆 件 块 岁 位 项 组 对"""
)
SIZES = {  # (the unit it is measured in, how many of those)
    unit: (base, Fraction(size))
    for unit, base, size in map(
        str.split,
        "mm m 1/1000,cm m 1/100,km m 1000,ft in 12,yd in 36,mi in 63360,min s 60,h s 3600,day s 86400,week s 604800,"
        "yr month 12,kg g 1000,mg g 1/1000,lb oz 16,ml L 1/1000,mL L 1/1000,$ ¢ 100".split(","),
    )
}
SI_UNIT = re.compile("[pnμmcdkMGT]?(?:m|g|s|A|K|mol|Hz|N|Pa|J|W|C|V|F|T|H|L|eV|rad|cal|Ω)")  # capitals matter
COMPOUNDS = {"mph": ["miles", "/", "hour"], "kph": ["km", "/", "hour"], "sq": ["square"], "cu": ["cubic"]}
COMPOUNDS |= {"平方米": ["m", "^2"], "平方厘米": ["cm", "^2"], "立方米": ["m", "^3"], "立方厘米": ["cm", "^3"]}
DIMENSIONS = {"square": 2, "squared": 2, "cubic": 3, "cubed": 3}
SCALES = {"hundred": 10**2, "thousand": 10**3, "million": 10**6, "billion": 10**9, "trillion": 10**12, "dozen": 12}
NUMBER_WORDS = set(
    "one two three four five six seven eight nine ten eleven twelve zero half third quarter fourth fifth sixth seventh "
    "eighth ninth tenth hundredth thousandth millionth halves thirds fourths fifths sixths sevenths eighths ninths "
    "tenths hundredths thousandths millionths ones tens".split()
)
HEDGES = NUMBER_WORDS | set(  # words that change what is claimed, wherever they stand
    "or and if maybe not no never more less most least about approximately approx around nearly than otherwise except "
    "between either neither but unless when where is was are be possibly perhaps plus minus over under above below "
    "beyond wrong unknown undefined impossible incorrect false correct then else mod modulo factorial score negatives "
    "none fewer greater smaller larger alternatively roughly almost instead versus vs reciprocal inverse "
    "minimum maximum any some up out rounded".split()
)
IRREGULAR = set(
    "people men women children feet teeth mice geese dice them total altogether left remaining each".split()
)
PREPOSITIONS = set("of per to in for that who which from on with by at long old tall wide high deep a an the".split())
WORD = re.compile(
    r"[A-Za-z]+(?:-[A-Za-z]+)+|[A-Za-zμΩ¢]+|°[CFK]?|[\u4e00-\u9fff]+|\^\s*\{?\s*-?\d+\s*\}?|\d+|[^\s.,·()'-]"
)
Units = frozenset[tuple[str, int]]  # {(name, exponent), ...}: m/s^2 is {(m, 1), (s, -2)}


def unit_name(word: str) -> str:
    """The one name of a unit, cm for centimeters and MeV for MeV; "?" for a word that is not known, as apples."""
    if word in UNIT_NAMES:
        return UNIT_NAMES[word]
    if SI_UNIT.fullmatch(word) or word in ("°C", "°F", "°K"):
        return word
    lowered = word.lower()
    return UNIT_NAMES.get(lowered, UNIT_NAMES.get(lowered.rstrip("s"), "?"))


def _can_be_counted(word: str) -> bool:
    """Whether a word is a noun in the plural, or an abbreviation such as USD or MB."""
    plural = len(word) > 2 and word.lower().endswith("s") and not word.lower().endswith(("ss", "us", "is"))
    return plural or word.lower() in IRREGULAR or (word.isupper() and 2 <= len(word) <= 4)


def read_words(text: str) -> tuple[int, Units]:
    """(a factor such as that of `million`, the units) of the words after a number.

    Raises Refused where a word changes the value, or where there is neither a unit nor a noun in the plural: anything
    may be counted (`7 red pens`), but `3 squared`, `5 short` and `10 reciprocal` are not 3, 5 and 10.
    """
    words: list[str] = []
    for word in WORD.findall(text.replace("*", " ").replace("$", " ")):
        words += COMPOUNDS.get(word.lower(), [word])
    factor, sign, size, name = 1, 1, 1, ""
    counted = in_clause = words[:2] in (["of", "the"], ["of", "all"])  # 5/6 of the cake
    powers: dict[str, int] = {}
    for i, word in enumerate(words):
        lowered = word.lower()
        if in_clause and (word.isdigit() or len(word) == 1 or lowered in NUMBER_WORDS):
            continue  # multiples of 3, values of n
        if lowered in HEDGES or lowered.rpartition("-")[2] in NUMBER_WORDS:
            raise Refused(f"{word} may change the meaning")
        if lowered.rstrip("s") in SCALES and not in_clause:
            if name not in ("", "$"):
                raise Refused(f"{word} after a unit")
            factor *= SCALES[lowered.rstrip("s")]
            counted = True
        elif word == "/" or lowered == "per":
            sign = -1
        elif word[0] == "^" and len(word) > 1 and counted:
            powers[name] = powers.get(name, 1) * int(word.strip("^{} "))
        elif lowered in ("squared", "cubed") and i:
            if unit_name(words[i - 1]) == "?":
                raise Refused(f"{word} after no unit")
            powers[name] = powers.get(name, 1) * DIMENSIONS[lowered]
        elif lowered in DIMENSIONS and i + 1 < len(words):
            size = DIMENSIONS[lowered]
        elif not (word[0].isalpha() or word[0] in "°¢%"):
            raise Refused("a digit or sign among words")
        elif (known := unit_name(word)) != "?" and not in_clause:
            name, counted = known, True
            powers[name] = powers.get(name, 0) + sign * size
            sign, size = 1, 1
        else:
            counted = counted or _can_be_counted(word)
            in_clause = in_clause or counted and lowered in PREPOSITIONS
            if len(word) == 1 and lowered not in PREPOSITIONS:
                raise Refused(f"{word} is no unit")
            if not in_clause:
                powers["?"] = 1
    if words and not counted:
        raise Refused("words that are neither a unit nor a plural")
    return factor, frozenset((name, power) for name, power in powers.items() if name)


def with_units(node: Node, words: str) -> Node:
    """A number and the words after it as (unit number units), or the number alone where they say nothing."""
    factor, units = read_words(words)
    if node.names and any(name == "?" for name, _ in units):
        raise Refused("words that are no unit")
    node = product(node, num(factor)) if factor != 1 else node
    return Node("unit", (node, units)) if units else node


def measured(units: Units) -> tuple[Fraction, Units]:
    """The same in the smallest units of SIZES: ft is 12 and {(in, 1)}."""
    factor, powers = Fraction(1), {}
    for name, power in units:
        base, size = SIZES.get(name, (name, 1))
        factor *= Fraction(size) ** power
        powers[base] = powers.get(base, 0) + power
    return factor, frozenset((name, power) for name, power in powers.items() if power)


def units_agree(a: Units, b: Units) -> bool:
    """Whether a side has no known units, or both have the same. 36° may be 36 °C."""
    a, b = (frozenset(unit for unit in units if unit[0] != "?") for units in (a, b))
    return not a or not b or a == b or (("°", 1) in a | b and {name for name, _ in a | b} <= {"°", "°C", "°F", "°K"})


def compound(larger: Node, smaller: Node) -> Node | None:
    """5 ft 6 in as 5 + 6/12 ft; None where the units do not add up."""
    if larger.op != "unit" or smaller.op != "unit":
        return None
    (size, unit), (smaller_size, smaller_unit) = measured(larger.args[1]), measured(smaller.args[1])
    if unit != smaller_unit or smaller_size >= size:
        return None
    total = Node("add", (larger.args[0], product(smaller.args[0], num(smaller_size / size))))
    return Node("unit", (total, larger.args[1]))
