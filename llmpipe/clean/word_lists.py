"""Words that URL lists and bad-word lists start from, kept short on purpose: a user's own lists come on top.

What stands here is pornography, gambling and slurs, not every rude word: a page of prose may swear.
"""

from __future__ import annotations

URL_BANNED = (
    "porn porno pornhub porntube xvideos xnxx xhamster redtube youporn xxx hentai milf camgirls camsex livesex blowjob gangbang creampie "
    "cumshot bukkake shemale shemales upskirt incestporn rapeporn escortgirls sexcam sexcams sextube sexchat sexdating pornstars onlyfansleaks "
    "caoliu caoporn avmoo javbus javlibrary jable pornse seqing huangse chengren bocai"
).split()
"""One of these as a word of a URL is enough."""

URL_SOFT = (
    "adult sex sexy nude naked escort escorts erotic fetish webcam cam cams dating hookup hot girls teen teens tits boobs ass pussy anal lesbian gay "
    "casino casinos poker slots slot betting bet bets gambling lottery jackpot roulette baccarat viagra cialis pharmacy pills payday loan loans crack "
    "cracked keygen warez torrent replica rolex caipiao dubo duchang meinv luoli"
).split()
"""Each alone is harmless (a casino's history, an adult education centre); two or more in one URL are not."""

URL_DOMAINS = "pornhub.com xvideos.com xnxx.com xhamster.com redtube.com youporn.com chaturbate.com stripchat.com spankbang.com".split()

BAD_WORDS = {
    "en": (
        "anal sex|bareback|blow job|blowjob|blowjobs|bukkake|camgirl|camgirls|cock sucking|creampie|cum shot|cumshot|cumshots|cunt|deepthroat|"
        "dildo|doggystyle|double penetration|fisting|fuck|fucked|fucking|fucks|gangbang|gang bang|handjob|hand job|hardcore sex|hentai|hot girls|"
        "jerk off|live sex|masturbate|masturbating|milf|milfs|naked girls|nude girls|orgasm|orgy|porn|porno|pornographic|pornstar|pornstars|pussy|"
        "sex cam|sex chat|sex tube|sex video|sex videos|shemale|slut|sluts|threesome|tits|upskirt|whore|whores|xxx|"
        "nigger|niggers|faggot|faggots|kike|chink|spic|retards|"
        "online casino|casino bonus|free spins|no deposit bonus|sports betting|slot machines online|buy viagra|cheap viagra|buy cialis|cheap cialis"
    ).split("|"),
    "zh": (
        "色情|黄片|黄色网站|成人电影|成人视频|成人网站|成人论坛|成人小说|情色|三级片|毛片|无码|有码|自慰|手淫|口交|肛交|乳交|群交|轮奸|强奸|迷奸|做爱|性交|性爱|"
        "性奴|淫荡|淫乱|淫秽|淫水|淫妇|荡妇|骚货|骚逼|鸡巴|屌丝逼|阴茎|阴道|阴蒂|乳头|高潮|射精|裸聊|一夜情|约炮|援交|卖淫|嫖娼|上门服务|包夜|应召|"
        "肏|操你妈|草泥马|傻逼|煞笔|妈逼|狗娘养|王八蛋|贱人|婊子|"
        "博彩|赌博网|网上赌场|真人赌场|在线赌场|时时彩|六合彩|百家乐|老虎机|棋牌平台|彩票平台|北京赛车|葡京|太阳城娱乐|开户送|首存送|"
        "代开发票|办证刻章|迷药|催情药|壮阳|伟哥|窃听器|枪支出售"
    ).split("|"),
}

ALLOWED = {
    "en": "Scunthorpe|cock a doodle|pussy willow|pussy cat|tits and|great tits|blue tits|chink in|a chink|spic and span".split("|"),
    "zh": "情色彩|激情色彩|感情色彩|深情色|无码头|有码头|高潮迭起|掀起高潮|新高潮|高潮阶段|涨潮高潮|大高潮|小高潮|高潮部分|将乳头|两性交往|个性交|男性交|女性交|异性交|同性交|中性交|性交通|性交流|性交往|性交易|性交谈|性交互|性交付|性爱好|个性爱|理性爱|感性爱|人性爱|女性爱|男性爱|反对淫秽|强奸罪|博彩业|赌博网站打击".split("|"),
}
"""Longer phrases in which a bad word means nothing bad. Chinese has no word boundaries: 个性交 of 个性交流 holds one by chance."""
