"""Languages: ISO 639-1 codes and English names, by which a speech task says what is spoken.

An instruction names a language in English, as the model was trained to be asked. Gemma 3n's model
card speaks of over 140 languages in text and 35 in sound and lists neither, so the table has every
language with a code of two letters, and some that have a longer one. What it does not have is
refused: a model asked for a language that nobody speaks answers in some other.

    language_name("es"), language_name("spanish")        # "Spanish", "Spanish"
"""

from __future__ import annotations

from difflib import get_close_matches

from gemelo.errors import InputError, one_line

LANGUAGES = {
    "aa": "Afar",
    "ab": "Abkhazian",
    "ae": "Avestan",
    "af": "Afrikaans",
    "ak": "Akan",
    "am": "Amharic",
    "an": "Aragonese",
    "ar": "Arabic",
    "as": "Assamese",
    "av": "Avaric",
    "ay": "Aymara",
    "az": "Azerbaijani",
    "ba": "Bashkir",
    "be": "Belarusian",
    "bg": "Bulgarian",
    "bi": "Bislama",
    "bm": "Bambara",
    "bn": "Bengali",
    "bo": "Tibetan",
    "br": "Breton",
    "bs": "Bosnian",
    "ca": "Catalan",
    "ce": "Chechen",
    "ch": "Chamorro",
    "co": "Corsican",
    "cr": "Cree",
    "cs": "Czech",
    "cu": "Church Slavonic",
    "cv": "Chuvash",
    "cy": "Welsh",
    "da": "Danish",
    "de": "German",
    "dv": "Dhivehi",
    "dz": "Dzongkha",
    "ee": "Ewe",
    "el": "Greek",
    "en": "English",
    "eo": "Esperanto",
    "es": "Spanish",
    "et": "Estonian",
    "eu": "Basque",
    "fa": "Persian",
    "ff": "Fulah",
    "fi": "Finnish",
    "fj": "Fijian",
    "fo": "Faroese",
    "fr": "French",
    "fy": "Western Frisian",
    "ga": "Irish",
    "gd": "Scottish Gaelic",
    "gl": "Galician",
    "gn": "Guarani",
    "gu": "Gujarati",
    "gv": "Manx",
    "ha": "Hausa",
    "he": "Hebrew",
    "hi": "Hindi",
    "ho": "Hiri Motu",
    "hr": "Croatian",
    "ht": "Haitian Creole",
    "hu": "Hungarian",
    "hy": "Armenian",
    "hz": "Herero",
    "ia": "Interlingua",
    "id": "Indonesian",
    "ie": "Interlingue",
    "ig": "Igbo",
    "ii": "Sichuan Yi",
    "ik": "Inupiaq",
    "io": "Ido",
    "is": "Icelandic",
    "it": "Italian",
    "iu": "Inuktitut",
    "ja": "Japanese",
    "jv": "Javanese",
    "ka": "Georgian",
    "kg": "Kongo",
    "ki": "Kikuyu",
    "kj": "Kuanyama",
    "kk": "Kazakh",
    "kl": "Greenlandic",
    "km": "Khmer",
    "kn": "Kannada",
    "ko": "Korean",
    "kr": "Kanuri",
    "ks": "Kashmiri",
    "ku": "Kurdish",
    "kv": "Komi",
    "kw": "Cornish",
    "ky": "Kyrgyz",
    "la": "Latin",
    "lb": "Luxembourgish",
    "lg": "Ganda",
    "li": "Limburgish",
    "ln": "Lingala",
    "lo": "Lao",
    "lt": "Lithuanian",
    "lu": "Luba-Katanga",
    "lv": "Latvian",
    "mg": "Malagasy",
    "mh": "Marshallese",
    "mi": "Maori",
    "mk": "Macedonian",
    "ml": "Malayalam",
    "mn": "Mongolian",
    "mr": "Marathi",
    "ms": "Malay",
    "mt": "Maltese",
    "my": "Burmese",
    "na": "Nauru",
    "nb": "Norwegian Bokmål",
    "nd": "North Ndebele",
    "ne": "Nepali",
    "ng": "Ndonga",
    "nl": "Dutch",
    "nn": "Norwegian Nynorsk",
    "no": "Norwegian",
    "nr": "South Ndebele",
    "nv": "Navajo",
    "ny": "Chichewa",
    "oc": "Occitan",
    "oj": "Ojibwa",
    "om": "Oromo",
    "or": "Odia",
    "os": "Ossetian",
    "pa": "Punjabi",
    "pi": "Pali",
    "pl": "Polish",
    "ps": "Pashto",
    "pt": "Portuguese",
    "qu": "Quechua",
    "rm": "Romansh",
    "rn": "Rundi",
    "ro": "Romanian",
    "ru": "Russian",
    "rw": "Kinyarwanda",
    "sa": "Sanskrit",
    "sc": "Sardinian",
    "sd": "Sindhi",
    "se": "Northern Sami",
    "sg": "Sango",
    "si": "Sinhala",
    "sk": "Slovak",
    "sl": "Slovenian",
    "sm": "Samoan",
    "sn": "Shona",
    "so": "Somali",
    "sq": "Albanian",
    "sr": "Serbian",
    "ss": "Swati",
    "st": "Southern Sotho",
    "su": "Sundanese",
    "sv": "Swedish",
    "sw": "Swahili",
    "ta": "Tamil",
    "te": "Telugu",
    "tg": "Tajik",
    "th": "Thai",
    "ti": "Tigrinya",
    "tk": "Turkmen",
    "tl": "Tagalog",
    "tn": "Tswana",
    "to": "Tongan",
    "tr": "Turkish",
    "ts": "Tsonga",
    "tt": "Tatar",
    "tw": "Twi",
    "ty": "Tahitian",
    "ug": "Uyghur",
    "uk": "Ukrainian",
    "ur": "Urdu",
    "uz": "Uzbek",
    "ve": "Venda",
    "vi": "Vietnamese",
    "vo": "Volapük",
    "wa": "Walloon",
    "wo": "Wolof",
    "xh": "Xhosa",
    "yi": "Yiddish",
    "yo": "Yoruba",
    "za": "Zhuang",
    "zh": "Chinese",
    "zu": "Zulu",
    # Codes of three letters, and ways of writing (BCP 47).
    "ceb": "Cebuano",
    "ckb": "Central Kurdish",
    "fil": "Filipino",
    "haw": "Hawaiian",
    "hmn": "Hmong",
    "ilo": "Ilocano",
    "mai": "Maithili",
    "yue": "Cantonese",
    "pt-BR": "Brazilian Portuguese",
    "zh-Hans": "Simplified Chinese",
    "zh-Hant": "Traditional Chinese",
}
OTHER_NAMES = {  # that people call them by
    "Bangla": "bn",
    "Bokmål": "nb",
    "Castilian": "es",
    "Farsi": "fa",
    "Flemish": "nl",
    "Frisian": "fy",
    "Gaelic": "gd",
    "Haitian": "ht",
    "Kalaallisut": "kl",
    "Kirundi": "rn",
    "Luganda": "lg",
    "Mandarin": "zh",
    "Myanmar": "my",
    "Nyanja": "ny",
    "Nynorsk": "nn",
    "Oriya": "or",
    "Panjabi": "pa",
    "Pushto": "ps",
    "Sesotho": "st",
    "Setswana": "tn",
    "Sinhalese": "si",
    "Slovene": "sl",
    "Sorani": "ckb",
    "Uighur": "ug",
    "Valencian": "ca",
}
_SHOWN = 40  # characters of a word that nobody knows
_CLOSE = 0.8  # of two words, by difflib: a letter or two of seven


def language_name(language: str, what: str = "language") -> str:
    """The English name of a language given by its code or a name, in any case.

    Raises InputError, which says `what` was given, for a language that the table does not have.
    """
    word = " ".join(language.split()).casefold()
    if not word:
        raise InputError(f"{what} is empty: give a code such as es, or a name such as Spanish")
    known = _known()
    if word not in known:
        close = get_close_matches(word[:_SHOWN], known, n=3, cutoff=_CLOSE)
        names = dict.fromkeys(f"{known[one]} ({code_of(known[one])})" for one in close)
        meant = f"is {' or '.join(names)} meant? " if names else ""
        raise InputError(
            f"{what} {one_line(language.strip(), _SHOWN)} is unknown; {meant}give a code such as "
            "es, or an English name such as Spanish; `gemelo transcribe --languages` lists them"
        )
    return known[word]


def code_of(name: str) -> str:
    """The code of a language by its English name in the table."""
    return next(code for code, known in LANGUAGES.items() if known == name)


def _known() -> dict[str, str]:
    """English names by everything that stands for them, in lower case."""
    known = {code.casefold(): name for code, name in LANGUAGES.items()}
    known |= {name.casefold(): name for name in LANGUAGES.values()}
    return known | {name.casefold(): LANGUAGES[code] for name, code in OTHER_NAMES.items()}
