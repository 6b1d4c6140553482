"""The closed part of the embedded corpus: few facts, few words, many sentences.

A fact (three plus four is seven) has QUESTIONS phrasings of its question and STATEMENTS of its
statement, the same in both languages, so that English and Mandarin sentences translate each other.
A sentence is a (fact, phrasing) pair; `hold_out` chooses the pairs that nothing trains on: their
fact is trained in other phrasings, their phrasing with other facts.
"""

from __future__ import annotations

import dataclasses
import random
from collections.abc import Sequence

from ba_jax.data.record import LANGUAGES

QUESTIONS = 5
"""Phrasings of a question."""
STATEMENTS = 3
"""Phrasings of a statement."""


@dataclasses.dataclass(frozen=True)
class Fact:
    """A fact in both languages.

    Attributes:
      id: "plus-3-4".
      category: "plus"; facts of a category share their phrasings.
      questions, statements: language -> phrasings, in the same order in both languages.
      answers: language -> the answer, which fits every question.
    """

    id: str
    category: str
    questions: dict[str, tuple[str, ...]]
    statements: dict[str, tuple[str, ...]]
    answers: dict[str, str]


_NUMBERS = {
    "en": "zero one two three four five six seven eight nine ten".split(),
    "zh": list("零一二三四五六七八九十"),
}

# Phrasings by category: (English, Mandarin) with the names of a fact's words; the last row is the
# answer. Several English sentences begin with each first word: its capital makes it another token,
# and the token of a single sentence could be held out altogether.
_PHRASINGS = {
    "sum": (
        ("What is {sum}?", "{sum}是多少？"),
        ("How much is {sum}?", "{sum}等于多少？"),
        ("What does {sum} make?", "{sum}得几？"),
        ("Tell me what {sum} is.", "请告诉我{sum}是多少。"),
        ("Do you know what {sum} is?", "你知道{sum}等于几吗？"),
        ("{sum} is {value}.", "{sum}是{value}。"),
        ("{sum} equals {value}.", "{sum}等于{value}。"),
        ("We know that {sum} is {value}.", "我们知道{sum}是{value}。"),
        ("The answer is {value}.", "答案是{value}。"),
    ),
    "color": (
        ("What color is {thing}?", "{thing}是什么颜色？"),
        ("Which color is {thing}?", "{thing}是哪种颜色？"),
        ("What is the color of {thing}?", "{thing}的颜色是什么？"),
        ("Tell me the color of {thing}.", "请告诉我{thing}的颜色。"),
        ("Do you know what color {thing} is?", "你知道{thing}是什么颜色吗？"),
        ("{thing} is {value}.", "{thing}是{value}的。"),
        ("The color of {thing} is {value}.", "{thing}的颜色是{value}。"),
        ("We know that {thing} is {value}.", "我们知道{thing}是{value}的。"),
        ("Its color is {value}.", "它的颜色是{value}。"),
    ),
    "opposite": (
        ("What is the opposite of {word}?", "跟{word}相反的是什么？"),
        ("Which word is the opposite of {word}?", "哪个词跟{word}相反？"),
        ("The opposite of {word} is what?", "{word}跟什么相反？"),
        ("Tell me the opposite of {word}.", "请告诉我跟{word}相反的词。"),
        ("Do you know the opposite of {word}?", "你知道跟{word}相反的词吗？"),
        ("The opposite of {word} is {value}.", "跟{word}相反的是{value}。"),
        ("The word {value} is the opposite of {word}.", "{value}这个词跟{word}相反。"),
        ("We know that the opposite of {word} is {value}.", "我们知道跟{word}相反的是{value}。"),
        ("Its opposite is {value}.", "跟它相反的是{value}。"),
    ),
    "day": (
        ("What day comes after {day}?", "{day}之后是星期几？"),
        ("Which day is after {day}?", "{day}后面是星期几？"),
        ("What is the day after {day}?", "{day}的后一天是星期几？"),
        ("Tell me what day comes after {day}.", "请告诉我{day}之后是星期几。"),
        ("Do you know what day comes after {day}?", "你知道{day}之后是星期几吗？"),
        ("After {day} comes {value}.", "{day}之后是{value}。"),
        ("The day after {day} is {value}.", "{day}的后一天是{value}。"),
        ("We know that after {day} comes {value}.", "我们知道{day}之后是{value}。"),
        ("That day is {value}.", "那一天是{value}。"),
    ),
    "season": (
        ("What season comes after {season}?", "{season}之后是什么季节？"),
        ("Which season is after {season}?", "{season}后面是哪个季节？"),
        ("What is the season after {season}?", "{season}的后一个季节是什么？"),
        ("Tell me what season comes after {season}.", "请告诉我{season}之后是什么季节。"),
        ("Do you know what season comes after {season}?", "你知道{season}之后是什么季节吗？"),
        ("After {season} comes {value}.", "{season}之后是{value}。"),
        ("The season after {season} is {value}.", "{season}的后一个季节是{value}。"),
        ("We know that after {season} comes {value}.", "我们知道{season}之后是{value}。"),
        ("That season is {value}.", "那个季节是{value}。"),
    ),
    "legs": (
        ("How many legs does {animal} have?", "{animal}有几条腿？"),
        ("{animal} has how many legs?", "一只{animal}有几条腿？"),
        ("On how many legs does {animal} walk?", "{animal}用几条腿走路？"),
        ("Tell me how many legs {animal} has.", "请告诉我{animal}有几条腿。"),
        ("Do you know how many legs {animal} has?", "你知道{animal}有几条腿吗？"),
        ("{animal} has {value} legs.", "{animal}有{value}条腿。"),
        ("{animal} walks on {value} legs.", "{animal}用{value}条腿走路。"),
        ("We know that {animal} has {value} legs.", "我们知道{animal}有{value}条腿。"),
        ("It has {value} legs.", "它有{value}条腿。"),
    ),
    "food": (
        ("What does {animal} eat?", "{animal}吃什么？"),
        ("What does {animal} like to eat?", "{animal}喜欢吃什么？"),
        ("What is the food of {animal}?", "{animal}的食物是什么？"),
        ("Tell me what {animal} eats.", "请告诉我{animal}吃什么。"),
        ("Do you know what {animal} eats?", "你知道{animal}吃什么吗？"),
        ("{animal} eats {value}.", "{animal}吃{value}。"),
        ("{animal} likes to eat {value}.", "{animal}喜欢吃{value}。"),
        ("We know that {animal} eats {value}.", "我们知道{animal}吃{value}。"),
        ("It likes to eat {value}.", "它喜欢吃{value}。"),
    ),
}

_PLUS = ((1, 2), (2, 2), (3, 2), (1, 4), (3, 3), (4, 3), (5, 2), (6, 2), (4, 4), (5, 4), (6, 4))
_MINUS = ((3, 1), (5, 1), (5, 2), (6, 4), (7, 6), (8, 3), (9, 3), (10, 3), (10, 1))
_COLORS = (
    ("the grass", "小草", "green", "绿色"),
    ("a leaf", "树叶", "green", "绿色"),
    ("the sky", "天空", "blue", "蓝色"),
    ("the sea", "大海", "blue", "蓝色"),
    ("the snow", "雪花", "white", "白色"),
    ("the milk", "牛奶", "white", "白色"),
    ("the coal", "煤炭", "black", "黑色"),
    ("a crow", "乌鸦", "black", "黑色"),
    ("a banana", "香蕉", "yellow", "黄色"),
    ("a tomato", "西红柿", "red", "红色"),
    ("a carrot", "胡萝卜", "orange", "橙色"),
    ("an elephant", "大象", "gray", "灰色"),
)
_OPPOSITES = (
    ("hot", "炎热", "cold", "寒冷"),
    ("big", "大", "small", "小"),
    ("fast", "快", "slow", "慢"),
    ("long", "长", "short", "短"),
    ("high", "高", "low", "低"),
    ("old", "旧", "new", "新"),
    ("morning", "早上", "evening", "晚上"),
    ("day", "白天", "night", "夜晚"),
    ("left", "左边", "right", "右边"),
    ("up", "上面", "down", "下面"),
    ("east", "东边", "west", "西边"),
    ("north", "北边", "south", "南边"),
)
_DAYS = {
    "en": "Monday Tuesday Wednesday Thursday Friday Saturday Sunday".split(),
    "zh": [f"星期{day}" for day in "一二三四五六天"],
}
_SEASONS = {"en": "spring summer autumn winter".split(), "zh": "春天 夏天 秋天 冬天".split()}
_LEGS = (
    ("a dog", "小狗", 4),
    ("a cat", "小猫", 4),
    ("a cow", "奶牛", 4),
    ("a bird", "小鸟", 2),
    ("a duck", "鸭子", 2),
    ("an ant", "蚂蚁", 6),
    ("a spider", "蜘蛛", 8),
)
_FOOD = (
    ("a cow", "奶牛", "grass", "青草"),
    ("a cat", "小猫", "fish", "鱼"),
    ("a panda", "熊猫", "bamboo", "竹子"),
    ("a monkey", "猴子", "bananas", "香蕉"),
    ("a rabbit", "兔子", "carrots", "胡萝卜"),
)


def _fact(id: str, category: str, phrasings: str, en: dict, zh: dict) -> Fact:
    rows = _PHRASINGS[phrasings]
    english = [row[0].format(**en) for row in rows]
    texts = {
        "en": [text[0].upper() + text[1:] for text in english],
        "zh": [row[1].format(**zh) for row in rows],
    }
    return Fact(
        id=id,
        category=category,
        questions={language: tuple(texts[language][:QUESTIONS]) for language in LANGUAGES},
        statements={language: tuple(texts[language][QUESTIONS:-1]) for language in LANGUAGES},
        answers={language: texts[language][-1] for language in LANGUAGES},
    )


def facts() -> tuple[Fact, ...]:
    """All facts, in a fixed order."""
    en, zh = _NUMBERS["en"], _NUMBERS["zh"]
    all_facts = []
    for word, sign, pairs in (("plus", 1, _PLUS), ("minus", -1, _MINUS)):
        character = {"plus": "加", "minus": "减"}[word]
        for a, b in pairs:
            value = a + sign * b
            words = {"sum": f"{en[a]} {word} {en[b]}", "value": en[value]}
            characters = {"sum": f"{zh[a]}{character}{zh[b]}", "value": zh[value]}
            all_facts.append(_fact(f"{word}-{a}-{b}", word, "sum", words, characters))
    for name, slot, rows in (
        ("color", "thing", _COLORS),
        ("opposite", "word", _OPPOSITES),
        ("food", "animal", _FOOD),
    ):
        for word, characters, value, value_zh in rows:
            id = f"{name}-{word.split()[-1]}"
            mapped = {slot: characters, "value": value_zh}
            all_facts.append(_fact(id, name, name, {slot: word, "value": value}, mapped))
    for name, words in (("day", _DAYS), ("season", _SEASONS)):
        count = len(words["en"])
        for i in range(count):
            pair = [
                {name: words[language][i], "value": words[language][(i + 1) % count]}
                for language in LANGUAGES
            ]
            all_facts.append(_fact(f"{name}-{words['en'][i].lower()}", name, name, *pair))
    for word, characters, count in _LEGS:
        # Two of something is 两, not 二.
        mapped = {"animal": characters, "value": "两" if count == 2 else zh[count]}
        pair = {"animal": word, "value": en[count]}, mapped
        all_facts.append(_fact(f"legs-{word.split()[-1]}", "legs", "legs", *pair))
    return tuple(all_facts)


def hold_out(
    facts: Sequence[Fact], phrasings: int, test: int, validation: int, seed: int
) -> dict[tuple[str, int], str]:
    """Choose the (fact id, phrasing) pairs that are not trained on, and their splits.

    At most one phrasing of a fact is held out, and a phrasing at most with every
    `phrasings`-th fact, so that most of each fact and of each phrasing is trained on. `test` and
    `validation` are numbers of pairs.
    """
    if test + validation > len(facts):
        raise ValueError(f"{test} + {validation} pairs to hold out of {len(facts)} facts")
    order = list(facts)
    random.Random(f"hold out {phrasings} {seed}").shuffle(order)
    chosen = {}
    for number, fact in enumerate(order[: test + validation]):
        split = "test" if number < test else "validation"
        chosen[fact.id, number % phrasings] = split
    return chosen
