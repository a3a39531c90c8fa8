"""What `variants` puts around a prompt in training: greetings, thanks and the like, by language."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass


@dataclass(frozen=True)
class Phrases:
    """Wording of the forms of a prompt.

    Attributes:
        greetings, thanks: by language, what stands before and after a prompt; `en` serves every language that has none.
        please: by language, templates with `{text}`, or `{lower}` for the text with a small first letter.
        tags: names of blocks that programs put into prompts.
        lines: what stands in such blocks.
        words: ordinary words.
    """

    greetings: Mapping[str, tuple[str, ...]]
    please: Mapping[str, tuple[str, ...]]
    thanks: Mapping[str, tuple[str, ...]]
    tags: tuple[str, ...]
    lines: tuple[str, ...]
    words: tuple[str, ...]


#: Of training. `benchmarks/robustness.py` has others, so that it does not judge what was learnt by heart.
TRAINING = Phrases(
    greetings={
        "en": ("Hi!", "Hello,", "Hey there.", "Good morning!", "Hi, I have a question.", "hello", "Dear assistant,"),
        "de": ("Hallo!", "Guten Tag,", "Hi, ich habe eine Frage."),
        "fr": ("Bonjour !", "Salut,", "Bonsoir, j'ai une question."),
        "es": ("¡Hola!", "Buenos días,", "Hola, tengo una pregunta."),
        "it": ("Ciao!", "Buongiorno,", "Ciao, ho una domanda."),
        "pt": ("Olá!", "Bom dia,", "Oi, tenho uma pergunta."),
        "nl": ("Hallo!", "Goedemorgen,", "Hoi, ik heb een vraag."),
        "sv": ("Hej!", "God morgon,"),
        "da": ("Hej!", "Goddag,"),
        "pl": ("Cześć!", "Dzień dobry,"),
        "cs": ("Ahoj!", "Dobrý den,"),
        "hu": ("Szia!", "Jó napot,"),
        "tr": ("Merhaba!", "Günaydın,"),
        "vi": ("Xin chào!", "Chào bạn,"),
        "id": ("Halo!", "Selamat pagi,"),
        "ru": ("Привет!", "Здравствуйте,", "Добрый день!"),
        "uk": ("Привіт!", "Добрий день,"),
        "zh": ("你好！", "您好，", "早上好，我有一个问题。"),
        "ja": ("こんにちは。", "おはようございます。", "すみません、質問があります。"),
        "ko": ("안녕하세요!", "안녕,", "질문이 있습니다."),
        "ar": ("مرحبا!", "السلام عليكم،", "صباح الخير،"),
        "he": ("שלום!", "היי,"),
        "hi": ("नमस्ते!", "नमस्कार,"),
        "th": ("สวัสดีครับ", "สวัสดีค่ะ"),
        "el": ("Γεια σου!", "Καλημέρα,"),
    },
    please={
        "en": (
            "Please {lower}",
            "{text} Please.",
            "Can you help me with this, please? {text}",
            "Please answer the following.\n\n{text}",
            "{text}\n\nPlease explain.",
            "pls {lower}",
            "I need help with this please\n{text}",
            "Could you tell me: {lower}",
        ),
        "de": ("Bitte: {text}", "{text} Bitte.", "Kannst du mir bitte helfen? {text}"),
        "fr": ("S'il vous plaît : {text}", "{text} S'il te plaît."),
        "es": ("Por favor: {text}", "{text} Por favor."),
        "it": ("Per favore: {text}", "{text} Per favore."),
        "pt": ("Por favor: {text}", "{text} Por favor."),
        "nl": ("Alsjeblieft: {text}", "{text} Alstublieft."),
        "sv": ("Snälla, {lower}", "{text} Tack på förhand."),
        "da": ("Vær venlig at svare: {text}",),
        "pl": ("Proszę: {text}", "{text} Proszę."),
        "cs": ("Prosím: {text}", "{text} Prosím."),
        "hu": ("Kérlek: {text}", "{text} Kérem."),
        "tr": ("Lütfen: {text}", "{text} Lütfen."),
        "vi": ("Vui lòng trả lời: {text}",),
        "id": ("Tolong: {text}", "{text} Tolong ya."),
        "ru": ("Пожалуйста: {text}", "{text} Пожалуйста."),
        "uk": ("Будь ласка: {text}", "{text} Будь ласка."),
        "zh": ("请回答：{text}", "{text}请帮帮我。", "麻烦你：{text}"),
        "ja": ("{text}お願いします。", "教えてください。{text}"),
        "ko": ("{text} 부탁합니다.", "알려 주세요. {text}"),
        "ar": ("من فضلك: {text}", "{text} لو سمحت."),
        "he": ("בבקשה: {text}", "{text} בבקשה."),
        "hi": ("कृपया: {text}", "{text} कृपया बताइए।"),
        "th": ("กรุณาตอบ: {text}", "{text} ช่วยหน่อยครับ"),
        "el": ("Παρακαλώ: {text}", "{text} Παρακαλώ."),
    },
    thanks={
        "en": ("Thanks!", "Thank you.", "Thanks in advance!", "thx", "Thank you very much!", "Thanks a lot, bye."),
        "de": ("Danke!", "Vielen Dank.", "Danke im Voraus!"),
        "fr": ("Merci !", "Merci beaucoup."),
        "es": ("¡Gracias!", "Muchas gracias."),
        "it": ("Grazie!", "Grazie mille."),
        "pt": ("Obrigado!", "Muito obrigada."),
        "nl": ("Bedankt!", "Dank je wel."),
        "sv": ("Tack!", "Tack så mycket."),
        "da": ("Tak!", "Mange tak."),
        "pl": ("Dzięki!", "Dziękuję."),
        "cs": ("Díky!", "Děkuji."),
        "hu": ("Köszi!", "Köszönöm."),
        "tr": ("Teşekkürler!", "Teşekkür ederim."),
        "vi": ("Cảm ơn!", "Cảm ơn bạn."),
        "id": ("Terima kasih!", "Makasih."),
        "ru": ("Спасибо!", "Большое спасибо."),
        "uk": ("Дякую!", "Щиро дякую."),
        "zh": ("谢谢！", "非常感谢。"),
        "ja": ("ありがとうございます。", "ありがとう！"),
        "ko": ("감사합니다!", "고마워요."),
        "ar": ("شكرا!", "شكرا جزيلا."),
        "he": ("תודה!", "תודה רבה."),
        "hi": ("धन्यवाद!", "बहुत धन्यवाद।"),
        "th": ("ขอบคุณครับ", "ขอบคุณมากค่ะ"),
        "el": ("Ευχαριστώ!", "Ευχαριστώ πολύ."),
    },
    tags=tuple(
        """
        context environment_details system-reminder session memory metadata client_info attachments preferences
        history workspace project_notes page_state device user_profile document_list instructions extra
        """.split()
    ),
    lines=(
        "Current date: 2026-02-11",
        "Today is Thursday.",
        "Timezone: Europe/Berlin",
        "User name: Alex",
        "Language: en-GB",
        "Platform: linux",
        "Working directory: /home/alex/projects/site",
        "Open file: src/main.ts",
        "Open tabs: inbox, calendar, notes",
        "Branch: main, nothing to commit",
        "The user is on the free plan.",
        "The user prefers metric units.",
        "Keep answers under 300 words.",
        "Do not mention these notes.",
        "Answer in the language of the question.",
        "Last message: 3 hours ago",
        "Device: phone, 390 × 844",
        "Previous topic: a trip in spring",
        "node v22.3.0, npm 10.8.1",
        "- README.md\n- package.json\n- src/",
        "Battery: 64 %",
        "Version: 4.12.0 (build 88213)",
        "The tool returned no results.",
        "Selected text: (none)",
        "Theme: dark",
        "No errors were found.",
    ),
    words=tuple(
        """
        able above account across action actor address adult advice afternoon agree air airport almost alone along
        amount ancient anger animal answer apple area arm army arrive artist attack autumn baby balance ball band bank
        basic basket beach bear beautiful bedroom beyond bicycle bird birth black blood blue board boat body bone book
        border bottle bottom box boy branch brave bread break breath bridge bright broad brother brown brush budget
        build burn bus business butter button buy cabin calm camera camp capital captain card care carpet castle cat
        cause ceiling centre chain chair chance chapter cheap cheese chest chicken chief choice church circle city
        class clean clear clever climate clock cloth cloud coast coat coffee coin cold collect colour comfort common
        company complete concert copper copy corn corner cotton council count country couple courage cover cream crowd
        cup curtain custom dance danger dark daughter deal death debate decide deep deer degree desert desk detail
        dinner direct dirty distance doctor dog dollar door double doubt dozen dream dress drink drive dry duck dust
        eager early earth east easy edge effort egg elbow electric empty energy engine enjoy entry equal escape evening
        event exact exercise expert extra eye fabric face factory fair faith fall family famous farm fast father
        favourite fear feather field fight figure film final finger fire fish flag flat flight floor flower foot forest
        forget fork form fortune frame free fresh friend front fruit full funny future garden gas gate general gentle
        giant gift girl glad glass goal gold good grand grass great green ground group guard guess guest guide guitar
        hair half hall hammer hand happy harbour hard hat health heart heavy height hero hill history holiday hollow
        home honest honey hope horse hospital hotel hour house hungry ice idea image inch income industry inside iron
        island jacket jewel job join joke journey judge juice jump kettle key kind king kitchen knee knife lady lake
        lamp land language large late laugh law leader leaf learn leather lemon letter level library light limit line
        lion list little local lock lonely loud love lucky lunch machine magic mail main manner map market master match
        """.split()
    ),
)
