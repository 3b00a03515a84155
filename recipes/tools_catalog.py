"""The tool-calling recipe's tables: the values that can be asked for, the tools and their phrasings.

Pure data; `tools_data` turns it into conversations. Everything open-ended is divided by split, so that a test
request uses a phrasing and values that no training request used.
"""

from __future__ import annotations

from dataclasses import dataclass

Value = str | int | float | bool


@dataclass(frozen=True)
class Tool:
    """One callable tool: its signature and, by split, the ways people ask for it.

    A signature is ``name:pool`` words, in the order of the call; ``name?:pool`` marks an optional argument.
    A phrasing names its arguments as ``{name}``; a part in ``[...]`` is left out at random, and with it the
    optional argument it names.
    """

    name: str
    signature: str
    train: tuple[str, ...]
    eval: tuple[str, ...]
    test: tuple[str, ...]


@dataclass(frozen=True)
class Numbers:
    """A range of numbers; `scale` 10 makes them decimals, `spelled` asks for them in words too."""

    low: int
    high: int
    step: int = 1
    scale: int = 1
    spelled: bool = False


# Divided between the splits by rank.
NUMBERS: dict[str, Numbers] = {
    "few": Numbers(2, 19, spelled=True),
    "minutes": Numbers(5, 90, spelled=True),
    "percent": Numbers(5, 95, spelled=True),
    "money": Numbers(12, 480),
    "oven": Numbers(140, 250, step=5),
    "km": Numbers(21, 189, scale=10),
    "degrees": Numbers(161, 239, scale=10),
}

# Several entries to a line keep the tables small enough to take in.
# fmt: off

# The words that ask for each value; the same few values in every split.
CHOICES: dict[str, dict[str, Value]] = {
    "on": {"on": True, "off": False},
    "lock": {"lock": True, "unlock": False},
    "open": {"open": True, "close": False},
    "with": {"with": True, "without": False},
    "day": {"today": "today", "tomorrow": "tomorrow"},
    "weekday": {
        "Monday": "Monday", "Tuesday": "Tuesday", "Wednesday": "Wednesday", "Thursday": "Thursday",
        "Friday": "Friday", "Saturday": "Saturday", "Sunday": "Sunday",
    },
    "room": {
        "kitchen": "kitchen", "bedroom": "bedroom", "office": "office", "hall": "hall", "garage": "garage",
        "bathroom": "bathroom",
    },
    "door": {"front": "front", "back": "back", "garage": "garage"},
    "priority": {"low": "low", "high": "high"},
    "mode": {"on foot": "foot", "by car": "car", "by bus": "bus", "by bike": "bike"},
    "cuisine": {
        "Thai": "Thai", "Italian": "Italian", "Mexican": "Mexican", "Indian": "Indian", "Greek": "Greek",
        "Korean": "Korean",
    },
    "topic": {
        "sports": "sports", "business": "business", "science": "science", "health": "health",
        "politics": "politics",
    },
    "language": {"French": "fr", "Spanish": "es", "German": "de", "Italian": "it", "Polish": "pl"},
    "currency": {"dollars": "USD", "euros": "EUR", "pounds": "GBP", "yen": "JPY"},
}

# Copied into the call as they stand: the values of train, eval and test.
WORDS: dict[str, tuple[str, str, str]] = {
    "city": (
        "Lisbon, Oslo, Cairo, Denver, Madrid, Toronto, Seoul, Athens, Lima, Dublin, Prague, Mumbai, Boston, "
        "Vienna, Sydney, Naples, Bergen, Dallas, Zurich, Havana, Delhi, Porto, Miami, Accra, Paris, London, "
        "Rome, Milan, Bangkok, Munich, Krakow, Manila, Jakarta, Bogota, Tunis, Riga, Leeds, Turin, "
        "Osaka, Perth, Seattle, Phoenix, Atlanta, Marseille, Glasgow, Antwerp, Salzburg",
        "Helsinki, Quito, Austin, Kyoto, Geneva",
        "Berlin, Nairobi, Chicago, Warsaw, Hanoi, Tokyo",
    ),
    "person": (
        "Maya, Tom, Priya, Luis, Anna, Omar, Grace, Ivan, Zoe, Ben, Leila, Hugo, Nora, Sam, Elena, Kofi, "
        "Karl, Yuki, Dana, Felix, Irene, Marco, Emma, Noah, Olivia, Liam, Chloe, Ethan, Amira, Pablo, Ingrid, "
        "Tariq, Lucy, Oscar, Fatima, Simon, Wanda, Boris, Carla, Dmitri, Esther, Gavin, Helen, Isaac",
        "Ruth, Diego, Mina, Paul",
        "Alice, Victor, Sofia, Jack, Hana, Peter",
    ),
    "label": (
        "gym, work, pasta, laundry, school run, yoga, eggs, meeting, nap, bread, piano, tea, cake, reading, "
        "soup, walk",
        "swim, study, rice",
        "train, bus, pizza, tennis",
    ),
    "message": (
        "running late, see you soon, call me back, happy birthday, dinner is ready, bring the keys, "
        "on my way, good luck today, the train is late, lunch is on me, we need milk, thanks for the gift, "
        "call you later, the cake is ready, I left the office, welcome home, wait for me, where are you now",
        "I am outside, door is open, see you at noon",
        "get well soon, meet me at home, I lost my phone, good morning",
    ),
    "task": (
        "call the bank, water the plants, buy stamps, pay the rent, feed the cat, renew my passport, "
        "clean the car, book a dentist, take out the trash, return the books, fix the bike, iron my shirt, "
        "paint the fence, make the bed, move the boxes, print the tickets, cut the grass, charge the drill",
        "pick up the parcel, wash the dog, back up my laptop",
        "empty the fridge, sign the form, charge the camera, sweep the porch",
    ),
    "subject": (
        "budget review, holiday plans, new invoice, team lunch, project update, travel dates, job offer, "
        "the contract, weekly report, garden party, making plans, summer camp, lost luggage, building work, "
        "new chairs, rent increase",
        "sales figures, office move, photo album",
        "meeting notes, school trip, moving house, price list",
    ),
    "event": (
        "dentist, book club, haircut, piano lesson, team lunch, yoga class, car service, parents evening, "
        "job interview, football practice, board meeting, doctor visit, swimming lesson, flu shot, "
        "budget meeting, art class, family visit, tire change",
        "eye test, choir practice, house viewing",
        "dance class, staff meeting, chess club, vet visit",
    ),
    "artist": (
        "Miles Davis, Adele, Queen, Bob Marley, Nina Simone, Coldplay, Madonna, The Beatles, Prince, Bjork, "
        "Johnny Cash, Radiohead, Norah Jones, Eminem, Oasis, Tina Turner",
        "Elton John, Blur, Shakira",
        "David Bowie, Beyonce, Stevie Wonder, Abba",
    ),
    "movie": (
        "Jaws, Casablanca, Titanic, Alien, Rocky, Frozen, Gladiator, Psycho, Amelie, Top Gun, The Matrix, "
        "Up, Fargo, Bambi, Cool Runnings, Platoon",
        "Vertigo, Shrek, Blade Runner",
        "Star Wars, Inception, King Kong, Toy Story",
    ),
    "dish": (
        "lasagna, chicken curry, pancakes, onion soup, paella, apple pie, ramen, falafel, beef stew, "
        "risotto, fish tacos, meatballs, tomato salad, waffles, dumplings, beef pie",
        "goulash, banana bread, omelette",
        "pumpkin soup, fried rice, moussaka, cheesecake",
    ),
    "item": (
        "milk, eggs, bananas, bread, onions, coffee, apples, butter, yogurt, tomatoes, rice, soap, lemons, "
        "honey, oats, grapes, peppers, beans, towels, cookies, stamps, mangos, salt, muffins",
        "carrots, sugar, candles, pears",
        "oranges, cheese, batteries, potatoes, napkins",
    ),
    "place": (
        "the airport, the museum, city hall, the zoo, the harbor, the library, Oak Street, the stadium, "
        "the old mill, Hill Park, the hospital, the market, the park, Elm Street, the bakery, the gym, "
        "Mill Lane, the bank",
        "the theater, Rose Avenue, the castle",
        "the station, Lake Road, the university, the beach",
    ),
    "company": (
        "Apple, Toyota, Shell, Netflix, Nike, Pfizer, Intel, Boeing, Samsung, Disney, Visa, Ford, Nokia, "
        "Honda, Adobe, Philips",
        "Adidas, Sony, Oracle",
        "Amazon, Tesla, Siemens, Microsoft",
    ),
    "word": (
        "serene, gravity, lucid, nomad, irony, candor, zenith, frugal, omen, tacit, eclipse, robust, brisk, "
        "novel, quorum, ardent",
        "fickle, plasma, mirage",
        "humble, paradox, vivid, orbit",
    ),
    "saying": (
        "good night, where is the bank, thank you, I am hungry, how are you, the bill please, "
        "see you later, my name is Leo, what time is it, happy new year, I need help, two tickets, "
        "I like tea, how much is it, good luck, we are late, open the window, one beer please",
        "good evening, I am lost, where is the hotel",
        "nice to meet you, I am tired, where is the beach, one coffee please",
    ),
    "code": (
        "KX42, BT07, ZR95, MA31, QP68, LD20, HN74, VC59, TS83, GW16, JE05, RB92",
        "DF47, UY80, PK23",
        "CM64, XA19, NL38, EV76",
    ),
    "file": (
        "notes.txt, cv.pdf, plan.md, photo.png, taxes.xls, song.mp3, draft.doc, menu.pdf, logo.svg, data.csv",
        "list.txt, map.png, essay.doc",
        "report.pdf, team.csv, trip.md, cover.jpg",
    ),
    "folder": (
        "Work, Archive, Taxes, Photos, School, Travel, Music, Recipes",
        "Family, Backup, Design",
        "Invoices, Garden, Books, Health",
    ),
    "query": (
        "cheap tents, how tides work, best running shoes, rust removal, origami cranes, solar panel cost, "
        "learn guitar chords, nearest star, sourdough starter, used bikes, moving to Spain, cheap flights, "
        "cat allergies, how bread rises, best winter coats, old coins",
        "bee hives, fix a leaky tap, winter tires",
        "how planes fly, compost tips, best phone camera, whale songs",
    ),
}

TOOLS: tuple[Tool, ...] = (
    Tool("set_alarm", "time:clock label?:label", (
        "wake me at {time}[, label it {label}]", "set an alarm for {time}[, label it {label}]",
        "alarm at {time}[ labelled {label}]", "I need an alarm at {time}[ with the label {label}]",
        "get me up at {time}[, label {label}]",
        "please wake me up at {time}[ and label it {label}]",
    ), ("put my alarm at {time}[, label {label}]",),
       ("could you set my alarm for {time}[, label it {label}]?",)),
    Tool("set_timer", "minutes:minutes label?:label", (
        "set a timer for {minutes} minutes[, label it {label}]",
        "timer for {minutes} minutes[ labelled {label}]", "start a {minutes} minute timer[, label {label}]",
        "count down {minutes} minutes[, label it {label}]",
        "I want a timer of {minutes} minutes[ with the label {label}]",
        "start the timer, {minutes} minutes[, label it {label}]",
    ), ("run a timer for {minutes} minutes[, label {label}]",),
       ("give me a timer of {minutes} minutes[, label {label}]",)),
    Tool("weather", "city:city day?:day", (
        "what is the weather in {city}[ {day}]?", "weather for {city}[ {day}]",
        "will it rain in {city}[ {day}]?", "how is the weather in {city}[ {day}]?",
        "forecast for {city}[ {day}] please",
        "what will the weather be in {city}[ {day}]?",
    ), ("tell me the forecast in {city}[ {day}]",),
       ("is it going to rain in {city}[ {day}]?",)),
    Tool("send_text", "to:person body:message", (
        "text {to}: {body}", "send {to} a text saying {body}", "text {to} that says {body}",
        "send a text to {to}: {body}", "tell {to} by text: {body}",
        "please text {to} saying {body}",
    ), ("write a text to {to} saying {body}",),
       ("could you text {to}: {body}",)),
    Tool("send_email", "to:person subject:subject", (
        "email {to} about {subject}", "send an email to {to}, subject {subject}",
        "write {to} an email about {subject}", "new email to {to} with subject {subject}",
        "mail {to} about {subject}",
        "send {to} an email about {subject}",
    ), ("start an email to {to} about {subject}",),
       ("compose an email to {to} about {subject}",)),
    Tool("call", "to:person", (
        "call {to}", "phone {to}", "give {to} a call",
        "ring {to}", "start a call to {to}",
        "please call {to} now",
    ), ("make a call to {to}",),
       ("can you call {to}?",)),
    Tool("play_music", "artist:artist shuffle?:with", (
        "play {artist}[ {shuffle} shuffle]", "play music by {artist}[ {shuffle} shuffle]",
        "put on some {artist} music[ {shuffle} shuffle]", "play songs by {artist}[ {shuffle} shuffle]",
        "I want to hear {artist}[ {shuffle} shuffle]",
        "let me hear music by {artist}[ {shuffle} shuffle]",
    ), ("start some songs by {artist}[ {shuffle} shuffle]",),
       ("could you play {artist}[ {shuffle} shuffle]?",)),
    Tool("set_volume", "level:percent", (
        "set the volume to {level} percent", "volume {level} percent", "turn the volume to {level} percent",
        "make the volume {level} percent", "change the sound volume to {level}",
        "I want the volume at {level} percent",
    ), ("put the volume at {level} percent",),
       ("bring the volume to {level} percent",)),
    Tool("lights", "room:room on:on", (
        "turn {on} the {room} lights", "switch the {room} lights {on}", "{room} lights {on}",
        "lights {on} in the {room}", "turn the lights in the {room} {on}",
        "please turn the {room} lights {on}",
    ), ("switch {on} the lights in the {room}",),
       ("could you turn {on} the lights in the {room}?",)),
    Tool("dim", "room:room level:percent", (
        "dim the {room} to {level} percent", "dim {room} lights to {level} percent",
        "dim the lights in the {room} to {level} percent", "{room} dimmed to {level} percent",
        "set the {room} dimmer to {level} percent",
        "please dim the {room} down to {level} percent",
    ), ("dim the {room} lamp to {level} percent",),
       ("could you dim the {room} lights to {level} percent?",)),
    Tool("heating", "degrees:degrees room?:room", (
        "set the heating to {degrees} degrees[ in the {room}]", "heat to {degrees} degrees[ in the {room}]",
        "heating at {degrees} degrees[ in the {room}]", "make it {degrees} degrees warm[ in the {room}]",
        "turn the heating to {degrees}[ in the {room}]",
        "put the heating to {degrees} degrees[ in the {room}]",
    ), ("I want the heating at {degrees}[ in the {room}]",),
       ("could you set the heating to {degrees}[ in the {room}]?",)),
    Tool("blinds", "room:room open:open", (
        "{open} the {room} blinds", "{open} the blinds in the {room}",
        "please {open} the blinds in the {room}", "{room} blinds: {open}",
        "can you {open} the {room} blinds",
        "I want you to {open} the {room} blinds",
    ), ("{open} all blinds in the {room}",),
       ("{open} the blinds of the {room} please",)),
    Tool("door", "door:door lock:lock", (
        "{lock} the {door} door", "please {lock} the {door} door", "{door} door: {lock}",
        "can you {lock} the {door} door", "{lock} my {door} door",
        "I want you to {lock} the {door} door",
    ), ("{lock} the {door} door now",),
       ("could you {lock} the {door} door?",)),
    Tool("vacuum", "room:room", (
        "vacuum the {room}", "send the vacuum to the {room}",
        "start the vacuum in the {room}", "have the {room} vacuumed",
        "vacuum my {room}",
        "please vacuum in the {room}",
    ), ("run the vacuum in the {room}",),
       ("could you vacuum the {room}?",)),
    Tool("oven", "temp:oven", (
        "heat the oven to {temp}", "set the oven to {temp} degrees",
        "oven at {temp}", "turn the oven to {temp}",
        "preheat the oven to {temp} degrees",
        "I need the oven at {temp} degrees",
    ), ("get the oven to {temp} degrees",),
       ("could you heat the oven to {temp} degrees?",)),
    Tool("add_event", "title:event day:weekday time?:clock", (
        "add {title} on {day}[ at {time}]", "put {title} in my calendar for {day}[ at {time}]",
        "schedule {title} on {day}[ at {time}]", "new event {title}, {day}[ at {time}]",
        "calendar: {title} on {day}[ at {time}]",
        "schedule an event, {title}, for {day}[ at {time}]",
    ), ("add {title} to the calendar for {day}[ at {time}]",),
       ("I have {title} on {day}[ at {time}], add it",)),
    Tool("remind", "task:task time:clock", (
        "remind me to {task} at {time}", "at {time} remind me to {task}", "reminder at {time}: {task}",
        "set a reminder to {task} at {time}", "send me a reminder at {time} to {task}",
        "please remind me at {time} to {task}",
    ), ("give me a reminder to {task} at {time}",),
       ("can you remind me to {task} at {time}?",)),
    Tool("add_todo", "task:task priority?:priority", (
        "add {task} to my todo list[, {priority} priority]", "todo: {task}[, {priority} priority]",
        "put {task} on my todo list[ with {priority} priority]", "new todo, {task}[, {priority} priority]",
        "add a todo to {task}[, {priority} priority]",
        "add a new todo: {task}[ with {priority} priority]",
    ), ("my todo list needs {task}[, {priority} priority]",),
       ("can you add {task} to my todo list[ with {priority} priority]?",)),
    Tool("buy", "item:item qty?:few", (
        "add[ {qty}] {item} to the shopping list", "put[ {qty}] {item} on my shopping list",
        "I need to buy[ {qty}] {item}", "shopping list:[ {qty}] {item}", "buy[ {qty}] {item}",
        "remember to buy[ {qty}] {item}",
    ), ("we must buy[ {qty}] {item}",),
       ("can you put[ {qty}] {item} on the shopping list?",)),
    Tool("birthday", "name:person date:date", (
        "{name} has a birthday on {date}", "save {name}'s birthday, {date}", "birthday of {name} is {date}",
        "add the birthday of {name}: {date}", "note that {name} was born on {date}",
        "{name}'s birthday is on {date}",
    ), ("store {name}'s birthday as {date}",),
       ("remember the birthday of {name}, {date}",)),
    Tool("translate", "text:saying to:language", (
        "translate {text} to {to}", "how do you say {text} in {to}?", "translate to {to}: {text}",
        "say {text} in {to}", "what is {text} in {to}?",
        "please translate into {to}: {text}",
    ), ("give me the {to} translation of {text}",),
       ("how would you say {text} in {to}?",)),
    Tool("convert", "amount:money from:currency to:currency", (
        "convert {amount} {from} to {to}", "how many {to} is {amount} {from}?",
        "change {amount} {from} into {to}", "{amount} {from} in {to}", "what is {amount} {from} in {to}?",
        "please convert {amount} {from} into {to}",
    ), ("how much is {amount} {from} in {to}?",),
       ("can you convert {amount} {from} to {to}?",)),
    Tool("pay", "to:person amount:money", (
        "pay {to} {amount} dollars", "send {amount} dollars to {to}", "transfer {amount} dollars to {to}",
        "pay {amount} dollars to {to}", "give {to} {amount} dollars",
        "please pay {amount} dollars over to {to}",
    ), ("make a payment of {amount} dollars to {to}",),
       ("can you send {to} {amount} dollars?",)),
    Tool("split_bill", "total:money people:few", (
        "split a bill of {total} between {people} people", "split {total} dollars {people} ways",
        "divide a {total} dollar bill by {people} people", "split the {total} bill among {people} friends",
        "bill of {total}, split it {people} ways",
        "split the bill, {total} dollars, for {people} people",
    ), ("share a bill of {total} between {people} people",),
       ("we are {people} people, split a bill of {total}",)),
    Tool("tip", "bill:money percent:percent", (
        "what is a {percent} percent tip on {bill}?", "tip {percent} percent on {bill} dollars",
        "work out a {percent} percent tip for {bill}", "add a {percent} percent tip to {bill}",
        "how much is a tip of {percent} percent on {bill}?",
        "calculate the {percent} percent tip for {bill} dollars",
    ), ("give me a {percent} percent tip on {bill}",),
       ("how much is a {percent} percent tip on {bill} dollars?",)),
    Tool("directions", "to:place mode?:mode", (
        "directions to {to}[ {mode}]", "how do I get to {to}[ {mode}]?", "show me the way to {to}[ {mode}]",
        "route to {to}[ {mode}]", "guide me to {to}[ {mode}]",
        "give me directions to {to}[ {mode}]",
    ), ("find the way to {to}[ {mode}]",),
       ("what is the way to {to}[ {mode}]?",)),
    Tool("taxi", "to:place time?:clock", (
        "get me a taxi to {to}[ at {time}]", "book a taxi to {to}[ at {time}]",
        "I need a taxi to {to}[ at {time}]", "call a cab to {to}[ at {time}]",
        "taxi to {to}[ at {time}] please",
        "order me a taxi to {to}[ at {time}]",
    ), ("order a cab to {to}[ at {time}]",),
       ("can you get me a cab to {to}[ at {time}]?",)),
    Tool("book_flight", "from:city to:city", (
        "book a flight from {from} to {to}", "fly me from {from} to {to}", "flight to {to} from {from}",
        "I need a flight from {from} to {to}", "get me a plane from {from} to {to}",
        "I want to book a flight to {to} from {from}",
    ), ("reserve a flight from {from} to {to}",),
       ("find me a flight from {from} to {to}",)),
    Tool("book_hotel", "city:city nights:few", (
        "book a hotel in {city} for {nights} nights", "hotel in {city}, {nights} nights",
        "find me a hotel in {city} for {nights} nights", "I need {nights} nights in a hotel in {city}",
        "reserve {nights} nights at a hotel in {city}",
        "please book {nights} nights in a {city} hotel",
    ), ("get a hotel in {city} for {nights} nights",),
       ("can you book me a hotel in {city} for {nights} nights?",)),
    Tool("book_table", "people:few time:clock", (
        "book a table for {people} at {time}", "table for {people} people at {time}",
        "reserve a table at {time} for {people}", "I need a table for {people} at {time}",
        "get us a table at {time} for {people} people",
        "please book a table at {time} for {people} people",
    ), ("reserve us a table for {people} at {time}",),
       ("can you reserve a table for {people} people at {time}?",)),
    Tool("find_food", "cuisine:cuisine city?:city", (
        "find {cuisine} food[ in {city}]", "where can I eat {cuisine} food[ in {city}]?",
        "good {cuisine} restaurants[ in {city}]", "I want to eat {cuisine}[ in {city}]",
        "show {cuisine} places to eat[ in {city}]",
        "find me some {cuisine} restaurants[ in {city}]",
    ), ("look for {cuisine} restaurants[ in {city}]",),
       ("where can I find {cuisine} food[ in {city}]?",)),
    Tool("recipe", "dish:dish people?:few", (
        "recipe for {dish}[ for {people} people]", "how do I cook {dish}[ for {people} people]?",
        "find a recipe for {dish}[ for {people} people]", "show me how to make {dish}[ for {people} people]",
        "I want to cook {dish}[ for {people} people]",
        "give me a {dish} recipe[ for {people} people]",
    ), ("how do I make {dish}[ for {people} people]?",),
       ("how can I cook {dish}[ for {people} people]?",)),
    Tool("watch", "title:movie subtitles?:with", (
        "watch {title}[ {subtitles} subtitles]", "put on the movie {title}[ {subtitles} subtitles]",
        "I want to watch {title}[ {subtitles} subtitles]", "show the film {title}[ {subtitles} subtitles]",
        "start the movie {title}[ {subtitles} subtitles]",
        "can we watch {title}[ {subtitles} subtitles]?",
    ), ("let us watch the film {title}[ {subtitles} subtitles]",),
       ("put {title} on[ {subtitles} subtitles], I want to watch it",)),
    Tool("news", "topic:topic day?:day", (
        "{topic} news[ for {day}]", "read me the {topic} news[ for {day}]",
        "what is the {topic} news[ for {day}]?", "show {topic} headlines[ for {day}]",
        "news about {topic}[ for {day}]",
        "give me the news on {topic}[ for {day}]",
    ), ("any {topic} news[ for {day}]?",),
       ("tell me the {topic} news[ for {day}]",)),
    Tool("stock", "company:company", (
        "stock price of {company}", "how is {company} stock doing?", "what is {company} stock worth?",
        "{company} share price", "check the stock of {company}",
        "what is the stock price for {company} now?",
    ), ("show the {company} stock price",),
       ("how much is the stock of {company}?",)),
    Tool("define", "word:word", (
        "define {word}", "what does {word} mean?", "definition of {word}", "meaning of the word {word}",
        "look up the word {word}",
        "please define the word {word}",
    ), ("what is the meaning of {word}?",),
       ("can you define {word} for me?",)),
    Tool("log_run", "km:km minutes?:minutes", (
        "I ran {km} km[ in {minutes} minutes]", "log a run of {km} km[ in {minutes} minutes]",
        "log {km} km of running[ in {minutes} minutes]", "add a {km} km run[ in {minutes} minutes]",
        "my run was {km} km[ in {minutes} minutes]",
        "today I ran {km} km[ in {minutes} minutes]",
    ), ("save a run of {km} km[ in {minutes} minutes]",),
       ("can you log a {km} km run[ in {minutes} minutes]?",)),
    Tool("track", "code:code", (
        "track parcel {code}", "where is my parcel {code}?", "track {code}", "follow package {code}",
        "status of parcel {code}",
        "can you track my package {code}?",
    ), ("find my parcel {code}",),
       ("could you track parcel {code}?",)),
    Tool("move_file", "file:file folder:folder", (
        "move {file} to {folder}", "put {file} in the {folder} folder", "move the file {file} to {folder}",
        "file {file} goes in {folder}", "move {file} into my {folder} folder",
        "please move {file} to the {folder} folder",
    ), ("put the file {file} into {folder}",),
       ("could you move {file} into {folder}?",)),
    Tool("search", "query:query", (
        "search for {query}", "look up {query} online", "search the web for {query}", "google {query}",
        "web search: {query}",
        "search online for {query}",
    ), ("do a web search for {query}",),
       ("could you search the web for {query}?",)),
)
# fmt: on
