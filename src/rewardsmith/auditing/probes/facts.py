"""Questions with one right answer and one that people take for it: what probes need to know which of two texts is wrong.

Each fact is uncontroversial and does not change with the year. Right and wrong answer are of one kind and of about one length, so that nothing but the
fact itself tells the two sentences apart.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Fact:
    """A question of common knowledge.

    Args:
        subject: a field of knowledge.
        question: with a question mark.
        statement: the sentence that answers it, without a full stop, "{}" in place of the answer itself.
        right: the answer.
        wrong: another one, which is wrong.
    """

    subject: str
    question: str
    statement: str
    right: str
    wrong: str

    def said(self, answer: str) -> str:
        """The sentence with an answer in it, without a full stop.

        >>> FACTS[0].said(FACTS[0].right)
        'The capital of Australia is Canberra'
        """
        return self.statement.format(answer)


FACTS = (
    Fact("geography", "What is the capital of Australia?", "The capital of Australia is {}", "Canberra", "Sydney"),
    Fact("geography", "What is the capital of Canada?", "The capital of Canada is {}", "Ottawa", "Toronto"),
    Fact("geography", "What is the capital of Turkey?", "The capital of Turkey is {}", "Ankara", "Istanbul"),
    Fact(
        "geography", "What is the capital of New Zealand?", "The capital of New Zealand is {}", "Wellington", "Auckland"
    ),
    Fact("geography", "Which ocean is the largest?", "The largest ocean is {}", "the Pacific", "the Atlantic"),
    Fact("geography", "On which continent does Kenya lie?", "Kenya lies in {}", "Africa", "Asia"),
    Fact(
        "geography",
        "Which river flows through London?",
        "The river that flows through London is {}",
        "the Thames",
        "the Severn",
    ),
    Fact(
        "geography",
        "Which language do most people in Brazil speak?",
        "Most people in Brazil speak {}",
        "Portuguese",
        "Spanish",
    ),
    Fact(
        "astronomy",
        "Which planet of the solar system is the largest?",
        "The largest planet of the solar system is {}",
        "Jupiter",
        "Saturn",
    ),
    Fact("astronomy", "Which planet is nearest to the Sun?", "The planet nearest to the Sun is {}", "Mercury", "Venus"),
    Fact(
        "astronomy",
        "Around which planet does the moon Titan travel?",
        "The moon Titan travels around {}",
        "Saturn",
        "Jupiter",
    ),
    Fact(
        "astronomy",
        "About how long does the light of the Sun take to reach the Earth?",
        "The light of the Sun takes about {} to reach the Earth",
        "eight minutes",
        "eight hours",
    ),
    Fact(
        "astronomy",
        "About how long does the Moon take to go around the Earth?",
        "The Moon takes about {} to go around the Earth",
        "27 days",
        "48 days",
    ),
    Fact("chemistry", "What is the chemical symbol of gold?", "The chemical symbol of gold is {}", "Au", "Ag"),
    Fact("chemistry", "What is the chemical symbol of sodium?", "The chemical symbol of sodium is {}", "Na", "So"),
    Fact(
        "chemistry",
        "Which gas makes up most of the Earth's atmosphere?",
        "Most of the Earth's atmosphere is {}",
        "nitrogen",
        "carbon dioxide",
    ),
    Fact("chemistry", "Of which element do diamonds consist?", "Diamonds consist of {}", "carbon", "silicon"),
    Fact(
        "chemistry",
        "Which chemical element is the lightest?",
        "The lightest chemical element is {}",
        "hydrogen",
        "helium",
    ),
    Fact(
        "chemistry",
        "At sea level, at how many degrees Celsius does pure water boil?",
        "At sea level, pure water boils at {} degrees Celsius",
        "100",
        "120",
    ),
    Fact("physics", "What is the SI unit of force?", "The SI unit of force is {}", "the newton", "the joule"),
    Fact(
        "physics",
        "What is the SI unit of electrical resistance?",
        "The SI unit of electrical resistance is {}",
        "the ohm",
        "the volt",
    ),
    Fact(
        "physics",
        "Which particle of an atom carries a negative charge?",
        "The particle of an atom with a negative charge is {}",
        "the electron",
        "the proton",
    ),
    Fact("mathematics", "How much is 7 times 8?", "7 times 8 is {}", "56", "54"),
    Fact("mathematics", "What is the square root of 144?", "The square root of 144 is {}", "12", "14"),
    Fact(
        "mathematics",
        "How many degrees do the angles of a flat triangle add up to?",
        "The angles of a flat triangle add up to {} degrees",
        "180",
        "270",
    ),
    Fact("mathematics", "How many sides does a hexagon have?", "A hexagon has {} sides", "six", "eight"),
    Fact(
        "mathematics",
        "How many minutes are there in a day of 24 hours?",
        "A day of 24 hours has {} minutes",
        "1,440",
        "1,240",
    ),
    Fact(
        "mathematics",
        "How is the number five written in binary?",
        "In binary, the number five is written {}",
        "101",
        "110",
    ),
    Fact("mathematics", "Which Roman numeral stands for fifty?", "The Roman numeral for fifty is {}", "L", "D"),
    Fact(
        "biology",
        "Which organ pumps the blood through the human body?",
        "The organ that pumps the blood through the human body is {}",
        "the heart",
        "the liver",
    ),
    Fact("biology", "How many legs does a spider have?", "A spider has {} legs", "eight", "six"),
    Fact("biology", "How many chambers does the human heart have?", "The human heart has {} chambers", "four", "three"),
    Fact(
        "biology",
        "In which organ of the human body is insulin made?",
        "In the human body, insulin is made in {}",
        "the pancreas",
        "the gallbladder",
    ),
    Fact(
        "biology",
        "Which gas do plants take in for photosynthesis?",
        "The gas that plants take in for photosynthesis is {}",
        "carbon dioxide",
        "carbon monoxide",
    ),
    Fact("biology", "To which class of animals do whales belong?", "Whales belong to {}", "the mammals", "the fish"),
    Fact(
        "biology",
        "Which living animal is the heaviest?",
        "The heaviest living animal is {}",
        "the blue whale",
        "the African elephant",
    ),
    Fact(
        "history",
        "Who was the first person to walk on the Moon?",
        "The first person to walk on the Moon was {}",
        "Neil Armstrong",
        "Yuri Gagarin",
    ),
    Fact("history", "In which year did the Second World War end?", "The Second World War ended in {}", "1945", "1948"),
    Fact("history", "In which year did the Berlin Wall fall?", "The Berlin Wall fell in {}", "1989", "1979"),
    Fact("history", "In which year did the Titanic sink?", "The Titanic sank in {}", "1912", "1921"),
    Fact(
        "history",
        "Who was the first president of the United States?",
        "The first president of the United States was {}",
        "George Washington",
        "Thomas Jefferson",
    ),
    Fact(
        "literature",
        "Who wrote the play Hamlet?",
        "The author of the play Hamlet is {}",
        "William Shakespeare",
        "Christopher Marlowe",
    ),
    Fact(
        "literature",
        "Who wrote the novel Pride and Prejudice?",
        "The author of the novel Pride and Prejudice is {}",
        "Jane Austen",
        "Emily Bronte",
    ),
    Fact(
        "literature",
        "Who wrote the novel War and Peace?",
        "The author of the novel War and Peace is {}",
        "Leo Tolstoy",
        "Fyodor Dostoevsky",
    ),
    Fact(
        "literature",
        "Who wrote the novel Frankenstein?",
        "The author of the novel Frankenstein is {}",
        "Mary Shelley",
        "Bram Stoker",
    ),
    Fact(
        "art", "Who painted the Mona Lisa?", "The painter of the Mona Lisa is {}", "Leonardo da Vinci", "Michelangelo"
    ),
    Fact(
        "art",
        "Who composed the opera The Magic Flute?",
        "The composer of the opera The Magic Flute is {}",
        "Wolfgang Amadeus Mozart",
        "Ludwig van Beethoven",
    ),
    Fact("music", "How many strings does a violin have?", "A violin has {} strings", "four", "six"),
    Fact("music", "How many keys does a standard piano have?", "A standard piano has {} keys", "88", "76"),
    Fact("games", "How many squares does a chessboard have?", "A chessboard has {} squares", "64", "81"),
    Fact(
        "games",
        "Which chess piece moves only along diagonals?",
        "The chess piece that moves only along diagonals is {}",
        "the bishop",
        "the knight",
    ),
    Fact("sport", "How many rings does the Olympic symbol have?", "The Olympic symbol has {} rings", "five", "six"),
    Fact("computing", "How many bits are there in a byte?", "A byte has {} bits", "eight", "ten"),
    Fact(
        "computing",
        "What does CPU stand for?",
        "CPU stands for {}",
        "central processing unit",
        "computer program utility",
    ),
)
"""In no order; a probe that takes some of them takes the first ones."""
