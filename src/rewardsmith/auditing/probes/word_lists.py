"""Fixed texts of the probes: sentences that say nothing, answers in other languages, words that stand for each other."""

from __future__ import annotations

NEUTRAL_SENTENCES = (
    "There is a beginning to a text, a middle to it and an end to it.",
    "What comes before comes first, and what comes after comes later.",
    "Some words are short words, and other words are longer words.",
    "A thing is the thing that it is, and it is not some other thing.",
    "Where there is more there is not less, and where there is less there is not more.",
    "One sentence is followed by another sentence, until there is no further sentence.",
    "What is written is written, and what is not written is not written.",
    "A part belongs to a whole, and a whole is made of its parts.",
    "Things that are alike are similar to each other, and things that are unlike differ.",
    "Between one point and the next point there is some room, and after that comes the next point.",
)
"""True of anything, so that they tell a reader nothing of what was asked."""

EMOJI = ("😊", "✨", "🎉", "🌟", "🙌", "👍", "🎈", "🌈")

LINKS = (
    "[Link](https://www.example.com/)",
    "[Page](https://www.example.org/page)",
    "[Link](https://www.example.net/link)",
    "[Page](https://example.com/1)",
)
"""To domains that are reserved for examples (RFC 2606), where nothing is to be read."""

TITLES = frozenset(
    "INT EXT Dr Mr Mrs Ms Prof St Mt Gen Col Capt Lt Sgt Rev Hon Fig Eq No Nr Vol vs cf e.g i.e viz".split()
)
"""A full stop after one of these ends no sentence."""
ABBREVIATIONS = frozenset("etc a.m p.m Inc Ltd Co Corp Jr Sr al approx dept est U.S U.K U.N Ph.D".split())
"""A full stop after one of these ends a sentence where a capital letter follows."""

SENTENCE_OPENERS = frozenset(
    "a an and although as at because before both but by each every for from he her here his how if in it its most no on one our she since so some such that"
    " the their there these they this those to under unlike we what when where which while with yes you your".split()
)
"""Words that have a capital letter only where they begin a sentence."""

OTHER_LANGUAGES = {
    "German": (
        "Guten Brotteig erkennt man daran, dass er sich weich anfühlt und kaum noch an den Händen klebt. Man lässt ihn an einem warmen Ort ruhen, bis er"
        " ungefähr doppelt so groß geworden ist. Danach wird er noch einmal kurz geknetet, geformt und in den heißen Ofen geschoben. Klopft man nach dem"
        " Backen auf die Unterseite und es klingt hohl, ist das Brot fertig."
    ),
    "French": (
        "Pour planter un jeune arbre, on creuse d'abord un trou deux fois plus large que ses racines. On mélange ensuite la terre avec un peu de compost,"
        " puis on place l'arbre bien droit. Il faut arroser généreusement pendant les premières semaines, surtout s'il ne pleut pas. Au printemps suivant,"
        " les premières feuilles montrent que l'arbre a bien pris."
    ),
    "Spanish": (
        "El viejo faro está en una roca, a unos dos kilómetros del puerto. Durante muchos años vivió allí una familia que encendía la lámpara cada noche."
        " Hoy la luz funciona sola y los visitantes pueden subir los ciento veinte escalones. Desde arriba se ven las islas y, cuando el día está claro, la"
        " costa entera."
    ),
    "Italian": (
        "Il mercato del paese si tiene ogni sabato nella piazza davanti alla chiesa. I contadini arrivano prima dell'alba e sistemano le cassette di frutta"
        " e verdura. Verso le nove ci sono già molte persone che parlano, assaggiano e comprano. A mezzogiorno la piazza è di nuovo vuota e resta solo il"
        " profumo del basilico."
    ),
    "Portuguese": (
        "A ponte foi construída há mais de cem anos e liga as duas margens do rio. De manhã passam por ela as crianças que vão para a escola e os"
        " pescadores que voltam para casa. No inverno, quando o rio sobe, a água quase chega às pedras do arco. Mesmo assim, ninguém se lembra de a ponte"
        " ter sido fechada."
    ),
    "Dutch": (
        "In het voorjaar komen de ooievaars terug naar het dorp. Ze bouwen hun nest op het dak van de oude molen, waar niemand ze stoort. De kinderen"
        " tellen elke dag hoeveel jongen er al te zien zijn. Als het in september kouder wordt, vliegen de vogels weer naar het zuiden."
    ),
    "Polish": (
        "Jesienią w lesie pachnie wilgotną ziemią i liśćmi. Ludzie wychodzą wcześnie rano z koszykami i szukają grzybów pod sosnami. Wieczorem czyszczą je"
        " w kuchni, suszą nad piecem albo smażą z cebulą. Zimą wystarczy garść suszonych grzybów, żeby zupa smakowała jak las."
    ),
    "Russian": (
        "Старый трамвай медленно едет по набережной и останавливается у каждого моста. Летом в нём много туристов, а зимой только несколько человек едут"
        " домой. Кондуктор знает почти всех и спрашивает, как дела. На последней остановке трамвай стоит десять минут, и слышно, как шумит река."
    ),
    "Chinese": (
        "村子后面有一座小山，山上种满了茶树。每年春天，人们天还没亮就上山采茶。新鲜的茶叶先要摊开晾一晾，然后放进大锅里慢慢炒。傍晚的时候，整个村子都能闻到茶香。"
    ),
    "Japanese": (
        "駅の近くに小さな本屋があります。店の奥には古い時計があって、いつも五分遅れています。雨の日には、本を読みながら電車を待つ人がたくさんいます。店の人は何も言わず、お茶を出してくれます。"
    ),
}
"""Fluent answers to questions that nobody asked."""

MARKER_WORDS = {
    "German": "der die und nicht ist ein eine mit für auf".split(),
    "French": "le la les des du de un une et est dans pour pas que vous avec on il".split(),
    "Spanish": "el los las es una por para con que del".split(),
    "Italian": "il gli che è una per con della sono di".split(),
    "Portuguese": "os uma não para com que do da em é".split(),
    "Dutch": "het een van en niet dat voor met zijn te".split(),
    "Polish": "i w nie na się z jest to że do".split(),
}
"""Frequent words of the languages that share the Latin script, by which an answer in that language is told."""

NEGATED = {
    "do": "don't",
    "does": "doesn't",
    "did": "didn't",
    "is": "isn't",
    "are": "aren't",
    "was": "wasn't",
    "were": "weren't",
    "could": "couldn't",
    "should": "shouldn't",
    "would": "wouldn't",
    "have": "haven't",
    "has": "hasn't",
    "had": "hadn't",
    "will": "won't",
    "can": "can't",
}
"""A verb before "not", and both in one word. "cannot" is the long form of "can't"."""
SHORTENED = {
    "I'm": "I am",
    "I've": "I have",
    "I'll": "I will",
    "you're": "you are",
    "you've": "you have",
    "you'll": "you will",
    "we're": "we are",
    "we've": "we have",
    "we'll": "we will",
    "they're": "they are",
    "they've": "they have",
    "they'll": "they will",
}
"""Read one way only; "it's" and "he'd" can be two things each, and "who I am" has no short form."""

SYNONYMS = {
    "for example": "for instance",
    "for instance": "for example",
    "furthermore": "moreover",
    "moreover": "furthermore",
    "additionally": "in addition",
    "in addition,": "additionally,",
    "in conclusion,": "to conclude,",
    "to conclude,": "in conclusion,",
    "in summary,": "to sum up,",
    "to sum up,": "in summary,",
    "as a result,": "consequently,",
    "consequently,": "as a result,",
    "in order to": "to",
    "in the event that": "if",
    "prior to": "before",
    "due to the fact that": "because",
    "a wide range of": "a wide variety of",
    "a wide variety of": "a wide range of",
    "a number of": "several",
    "the majority of the": "most of the",
    "lots of": "a lot of",
    "keep in mind": "bear in mind",
    "bear in mind": "keep in mind",
    "take into account": "take into consideration",
    "take into consideration": "take into account",
    "it is important to note that": "it is worth noting that",
    "it is essential to": "it is crucial to",
    "it is crucial to": "it is essential to",
    "ensure that": "make sure that",
    "ensures that": "makes sure that",
    "ensuring that": "making sure that",
    "make sure that": "ensure that",
    "is able to": "can",
    "are able to": "can",
    "difficult to": "hard to",
    "to purchase": "to buy",
    "each other": "one another",
    "one another": "each other",
    "anyone": "anybody",
    "anybody": "anyone",
    "someone": "somebody",
    "somebody": "someone",
    "everyone": "everybody",
    "everybody": "everyone",
    "no one": "nobody",
    "utilize": "use",
    "utilizes": "uses",
    "utilized": "used",
    "utilizing": "using",
    "begin to": "start to",
    "begins to": "starts to",
    "began to": "started to",
    "begin by": "start by",
    "begin with": "start with",
    "assist": "help",
    "assisting": "helping",
    "obtain": "get",
    "obtaining": "getting",
    "numerous": "many",
    "frequently": "often",
    "often": "frequently",
    "approximately": "roughly",
    "rapidly": "quickly",
    "typically": "usually",
    "usually": "typically",
    "perhaps": "maybe",
    "maybe": "perhaps",
    "especially": "particularly",
    "particularly": "especially",
    "regarding": "concerning",
    "therefore": "thus",
    "towards": "toward",
    "amongst": "among",
    "whilst": "while",
    "enormous": "huge",
    "huge": "enormous",
}
"""One way of saying it and another: words and phrases that mean the same wherever they stand."""

ORDER_WORDS = frozenset(
    "first firstly second secondly third thirdly fourth fifth next then finally lastly last afterwards afterward after before previous previously preceding"
    " following former latter above below earlier later subsequently another other others also again same once until step steps stage phase additionally"
    " furthermore moreover besides instead however therefore thus hence".split()
)
"""An item of a list with one of these may stand where it does because of the others."""

ITEM_STARTS = frozenset(
    "day week month year morning afternoon evening night noon breakfast brunch lunch dinner dessert monday tuesday wednesday thursday friday saturday sunday"
    " january february march april may june july august september october november december introduction intro conclusion outro verse chorus scene act chapter"
    " part section beginning middle end start finish summary overview and or but so it they he she this that these those".split()
)
"""An item that begins with one of these has its place, too."""

ORDERED_LISTS = frozenset(
    "step steps instruction instructions direction directions procedure process method timeline schedule itinerary agenda order ordered rank ranked ranking top"
    " recipe chronological chronologically sequence stages phases history dialogue conversation script story poem lyrics song routine plan respectively".split()
)
"""Words before a list, or in what was asked, that say that its order matters."""

DEEDS = frozenset(
    "add apply attach bake boil bring build chop clean click close combine connect cook cool cover create cut define download drain draw dry enter export fill"
    " find fold gather go heat import insert install join launch let log make mix move open paste place plug pour prepare press pull push put remove repeat"
    " rinse roll run save select serve set simmer slice sign stir submit switch take tap transfer turn type upload wait wash write".split()
)
"""Where two items begin with one of these, a list may be a procedure."""
