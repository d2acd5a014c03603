"""The words that needles are made of: our own list (RULER's come from the wonderwords package, whose list changes with its version)."""

_ADJECTIVES = """
able agile amber ancient arctic autumn azure bitter blue bold brave brief bright brisk broad bronze busy calm candid careful
cheerful civil clean clear clever coastal cold cool coral cosmic crimson crisp curious daily damp dapper daring dark deep distant
double dusty eager early eastern elder electric emerald empty endless equal exact faint fair famous fancy fast fearless final firm
flat formal fragile frank free fresh friendly frozen full gentle giant glad golden grand grave gray great green handy happy hardy
harsh hasty heavy hidden high hollow honest humble hungry icy idle inner ivory jolly just keen kind large late lavish lazy light
little lively lonely long loose loud loyal lucky magic main marble mellow merry mighty mild minor modern modest muddy narrow
native neat nimble noble northern novel odd old olive open orange outer pale patient placid plain polite proud purple quick quiet
rapid rare ready red regal remote rich rigid ripe robust rocky rough round royal rustic sacred salty scarlet secret serene sharp
shiny short silent silver simple sleepy slender slow small smooth snowy soft solar solid southern spare square stable steady steep
stern still stormy strange strict strong sturdy subtle sudden summer sunny super sweet swift tall tame tardy tender thick thin
tidy timid tiny tough tranquil true upper urban vague valid vast velvet violet vivid warm wary western white whole wide wild windy
winter wise witty wooden young yellow zealous
"""
_NOUNS = """
acorn actor anchor ankle apple apron arch arrow artist atlas badge bakery balloon banner barley barn barrel basin basket beacon
bell bench berry bishop blanket blossom boat bottle bridge broom brush bucket button cabin camel candle canoe canyon captain
carpet castle cedar cellar chalk chapel cherry chimney circle clock cloud clover coast cobbler column comet compass copper corner
cottage cotton cradle crane crater creek cricket crown crystal curtain dagger dairy daisy dancer desert diamond doctor dolphin
donkey dragon drawer dream drum eagle easel elbow engine falcon farmer feather fence fern ferry fiddle field flag flame flute
forest fossil fountain fox galaxy garden garlic gate giant ginger glacier glove goblet goose grain grape guitar hammer harbor harp
harvest hazel heron hill honey horizon horse hotel island ivy jacket jar jewel jungle kettle kitten knight ladder lagoon lake lamp
lantern lawyer leaf lemon lentil letter lily lion lizard locket magnet mango maple market meadow melon mirror mitten monk moon
mortar moss mountain needle nest noodle oak oasis ocean olive onion orchard orchid otter oven owl oyster paddle painter palace
panda parrot pasture peach pebble pepper piano pigeon pillow pilot pine planet plaza plum pocket poet pond pony poppy potato
prairie prince pumpkin puzzle quarry quilt rabbit radish railway raven ribbon ridge river robin rocket rose ruby sailor salmon
satchel scarf school shadow shelf shepherd ship shovel sleigh spider spoon spring squirrel stable star station stone stream sugar
sunset swan table tailor teacher temple thimble thistle thunder tiger timber tomato torch tower trail train trumpet tulip tunnel
turnip turtle valley vase vessel village violin wagon walnut waterfall wheel whistle willow window wolf wren yarn zebra
"""
ADJECTIVES = tuple(_ADJECTIVES.split())
NOUNS = tuple(_NOUNS.split())
