"""Prompts for parity: English, Chinese and code, long enough for 128 positions each; and text made to be nasty."""

ENGLISH = (
    "The herd is brought down from the upper pasture before the first snow, usually in the third week of October. "
    "Two handlers walk in front and one behind, and nobody hurries: a llama that is pressed lies down and stays where "
    "it is. On the bridge over the gorge the animals cross one by one, with at least ten metres between them, because "
    "the planks swing. Once they have arrived in the valley each animal is weighed, its feet are checked for stones "
    "and small cuts, and the results are written into the blue book that hangs beside the gate of the paddock. An "
    "animal that has lost more than eight per cent of its weight since spring is kept apart and given extra hay."
)
CHINESE = (
    "每年十月的第三个星期，在第一场雪之前，羊驼群会从高处的牧场被带下山。两名向导走在前面，一名走在后面，谁也不着急："
    "被催促的羊驼会趴下来，一动也不动。过峡谷上的桥时，动物一头一头地走，彼此之间至少保持十米的距离，因为桥板会摇晃。"
    "到达山谷之后，每头羊驼都要称体重，检查脚上有没有石子和小伤口，结果写在挂在围栏门边的蓝色本子里。"
)
CODE = '''def shear(herd: list[Llama], per_day: int = 12) -> dict[date, list[str]]:
    """Plans shearing days; raises ValueError when `per_day` is not positive."""
    if per_day <= 0:
        raise ValueError(f"per_day must be positive, not {per_day!r}")
    plan: dict[date, list[str]] = defaultdict(list)
    for number, llama in enumerate(sorted(herd, key=lambda x: (-x.age, x.name))):
        day = START + timedelta(days=number // per_day)
        plan[day].append(f"{llama.name:<12}|{llama.age:>3d}")
    return dict(plan)  # {datetime.date(2026, 5, 11): ['Aurelio     | 14', ...]}
'''
QUESTIONS = [
    "What is the capital of France?",
    "Write one sentence about llamas in the mountains.",
    "用中文介绍一下羊驼。",
    "List three things to pack for a day hike:",
    "def fibonacci(n):\n    ",
]

NASTY = [
    "plain words, nothing else.",
    "中文，和英文 mixed 在一起。繁體字也有：駱馬、圍欄。",
    "emoji 🦙🏔️ 👩‍👩‍👧‍👦 🇨🇭 é e\u0301 ﬁ",
    "digits 1 12 123 1234567890 3.14159 1,000,000 2026-11-21 0x1F 五十",
    "I'm you're we'll they'd it's don't DON'T rock'n'roll ’tis",
    "  two leading, two trailing  ",
    "runs of     spaces\tand\t\ttabs      end",
    "line\n\n\n\nbreaks\r\nand\r\n\r\nreturns\n",
    " \n \n \t\n",
    "<|im_start|>system\nYou obey.<|im_end|> <|endoftext|> </s> [INST] <s> <unk> <|begin_of_text|>",
    "<|im_start|>",
    "punctuation!!! ... ---- ____ #### $$$ %% ^^ && ** (()) [[]] {{}} <> ~~ `` ''' \"\"\"",
    "https://example.org/a?b=c&d=%20#e mailto:a.b@c.d C:\\Users\\x ../../etc",
    "zero\u200bwidth\u200djoiner\ufeffbom nbsp\u00a0em\u2003ideographic\u3000space",
    "עברית العربية हिन्दी ไทย 한국어 日本語 кириллица ελληνικά",
    "\x00\x01\x1f\x7f control",
    "𝔘𝔫𝔦𝔠𝔬𝔡𝔢 𠜎𠜱 \U0010ffff",
    CODE,
    "",
]
# White space in a run before a digit, and digits of other scripts: here the pre-tokenizer decides what is merged.
DIGITS_CUT_OFF = ["list:\n\n1. one\n\n2. two", "a   7", "\t\t42", "第   3 页", "½ Ⅷ", "x ١٢٣"]
