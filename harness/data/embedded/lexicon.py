"""One list of concepts and two lexicons: English words and single Chinese characters.

Concept ``i`` is entry ``i`` of both vocabularies. BERT's tokeniser splits Chinese into characters and keeps known
English words whole, so a text has the same ids in both languages, and one miniature encoder serves both with two
vocabulary files. This is a property of the made-up language, not a claim about English or Chinese.
"""

from __future__ import annotations

import string

_FUNCTION = "..。 ,.， is.是 as.如 not.不 but.但 choose.选 so.故"

_STARS = (
    "terrible.糟 awful.劣 horrible.恶 disgusting.呕",
    "bad.坏 poor.差 weak.弱 dull.闷",
    "okay.平 average.均 ordinary.凡 mediocre.庸",
    "good.好 nice.佳 pleasant.悦 decent.宜",
    "great.棒 excellent.优 superb.绝 perfect.妙",
)
_STAR_VERDICTS = "hated.恨 disliked.厌 neutral.中 liked.喜 loved.爱"

_TOPICS = (
    "war.战 treaty.约 border.疆 president.统",
    "goal.球 match.赛 coach.教 league.联",
    "bank.银 stock.股 profit.利 trade.贸",
    "atom.原 rocket.箭 laboratory.验 gene.基",
    "doctor.医 fever.烧 pill.药 heart.心",
    "school.校 exam.考 pupil.生 lesson.课",
    "software.软 keyboard.键 server.机 code.码",
    "film.影 song.歌 actor.演 dance.舞",
    "mother.母 father.父 wedding.婚 baby.婴",
    "painting.画 poem.诗 novel.书 sculpture.雕",
    "horse.马 eagle.鹰 whale.鲸 tiger.虎",
    "tree.树 flower.花 grass.草 leaf.叶",
    "village.村 lake.湖 mountain.山 river.河",
    "train.铁 ship.船 truck.卡 plane.飞",
)
_TOPIC_VERDICTS = (
    "politics.政 sports.体 business.商 science.科 health.健 education.育 computing.算 entertainment.娱 family.家 "
    "art.艺 animals.兽 plants.植 places.地 transport.运"
)

_PAIR_VERDICTS = "different.异 same.同"
_DIFFERENT_CUES = "instead.却 otherwise.否 contrary.反 elsewhere.另"
_SAME_CUES = "likewise.亦 also.也 again.再 equally.等"

_NAMES = "anna.安 ben.本 cleo.克 dan.丹 eva.伊 finn.芬 gina.吉 hugo.雨 iris.莉 jack.杰 kate.凯 leo.雷"
_FILLERS = (
    "today.今 yesterday.昨 we.我 they.他 hotel.店 city.城 room.房 table.桌 window.窗 morning.晨 evening.晚 people.人 "
    "house.屋 street.街 water.水 bread.饼 coffee.咖 paper.纸 letter.信 garden.园 door.门 chair.椅 road.路 phone.话 "
    "summer.夏 winter.冬 friend.友 neighbour.邻 visit.访 wait.待 bring.带 open.开 walk.走 carry.提 with.与 near.近 "
    "after.后 before.前 from.从 small.小"
)

SPECIALS = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")

ENGLISH: list[str] = []
CHINESE: list[str] = []


def _take(words: str) -> tuple[int, ...]:
    """Add ``english.chinese`` words to both lexicons and return their concept numbers."""
    first = len(ENGLISH)
    for word in words.split():
        ENGLISH.append(word[:-2])
        CHINESE.append(word[-1])
    return tuple(range(first, len(ENGLISH)))


STOP, COMMA, IS, AS, NOT, BUT, CHOOSE, SO = _take(_FUNCTION)
STARS = tuple(_take(words) for words in _STARS)  # [5][4] words of one to five stars
STAR_VERDICTS = _take(_STAR_VERDICTS)  # [5]
TOPICS = tuple(_take(words) for words in _TOPICS)  # [14][4]
TOPIC_VERDICTS = _take(_TOPIC_VERDICTS)  # [14]
PAIR_VERDICTS = _take(_PAIR_VERDICTS)  # [2]
PAIR_CUES = (_take(_DIFFERENT_CUES), _take(_SAME_CUES))  # [2][4]
NAMES = _take(_NAMES)
FILLERS = _take(_FILLERS)

LEXICON = {"en": tuple(ENGLISH), "zh": tuple(CHINESE)}


def _strays(language: str) -> list[str]:
    """Return entries with which any Latin or numeric text can be tokenised; equally many in both languages."""
    signs = string.ascii_lowercase + string.digits
    others = "。，" if language == "en" else ".,"
    return [*signs, *(f"##{sign}" for sign in signs), *"!?;:'\"()-/%&", *others]


def vocabulary(language: str) -> list[str]:
    """Return the WordPiece vocabulary of ``language`` (``"en"`` or ``"zh"``) in the order of ids.

    BERT's five special tokens, the concepts, then single letters, digits, their ``##`` continuations and punctuation.
    Both vocabularies have the same size, and concept ``i`` is entry ``len(SPECIALS) + i`` of both.

    Raises:
        KeyError: another language.
    """
    return [*SPECIALS, *LEXICON[language], *_strays(language)]


def render(concepts: list[int], language: str) -> str:
    """Return concepts as text: English words separated by spaces, Chinese characters without spaces."""
    words = LEXICON[language]
    return (" " if language == "en" else "").join(words[concept] for concept in concepts)
