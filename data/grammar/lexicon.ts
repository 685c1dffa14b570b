/**
 * The words of the built-in corpus. Each table is a text of one entry a line, fields apart by spaces, "_" for a space
 * within a field, "-" for none.
 *
 * @module
 */

/** A noun. */
export interface Noun {
  en: string;
  plural: string;
  zh: string;
  /** Measure word. */
  measure: string;
  kind: "person" | "animal" | "thing";
  groups: readonly string[];
}

/** A verb with its English forms. */
export interface Verb {
  base: string;
  third: string;
  past: string;
  participle: string;
  ing: string;
  zh: string;
}

/** A transitive verb and the nouns it takes. */
export interface Transitive extends Verb {
  /** Noun groups, see NOUNS. */
  takes: readonly string[];
  /** skill: can = 会; event: neither progressive nor duration; stative: present only. */
  flags: readonly string[];
}

/** A verb phrase without a free object: "swim", "play football". */
export interface Activity extends Verb {
  /** The fixed object in English. */
  tail: string;
  /** The object in Chinese, which aspect and duration come before. */
  object: string;
  flags: readonly string[];
}

/** An adjective. */
export interface Adjective {
  en: string;
  comparative: string;
  superlative: string;
  /** Before a noun, with 的 where it needs one. */
  attributive: string;
  /** As a predicate and in comparisons. */
  predicate: string;
  /** What it may describe. */
  groups: readonly string[];
}

function rows(table: string): string[][] {
  return table.trim().split("\n").map((line) =>
    line.trim().split(/ +/).map((field) => field === "-" ? "" : field.replaceAll("_", " "))
  );
}

function pluralOf(noun: string): string {
  if (/(s|x|ch|sh)$/.test(noun)) return `${noun}es`;
  if (/[^aeiou]y$/.test(noun)) return `${noun.slice(0, -1)}ies`;
  return `${noun}s`;
}

function nouns(kind: Noun["kind"], table: string): Noun[] {
  return rows(table).map(([en = "", zh = "", measure = "", groups = "", plural]) => ({
    en,
    plural: plural ?? pluralOf(en),
    zh,
    measure,
    kind,
    groups: groups.split(",").concat(kind, en),
  }));
}

/** People. Groups: job; known (one may have one's own). */
export const PEOPLE: readonly Noun[] = nouns(
  "person",
  `teacher 老师 位 job,known
  doctor 医生 位 job,known
  student 学生 个 job,known
  nurse 护士 位 job
  driver 司机 位 job,known
  worker 工人 位 job
  farmer 农民 位 job
  singer 歌手 位 job
  writer 作家 位 job
  lawyer 律师 位 job,known
  engineer 工程师 位 job
  scientist 科学家 位 job
  policeman 警察 位 job policemen
  boy 男孩 个 -
  girl 女孩 个 -
  child 孩子 个 - children
  friend 朋友 个 known
  neighbor 邻居 个 known
  guest 客人 位 known`,
);

/** Relatives; after a pronoun in the singular they go without 的. */
export const RELATIVES: readonly Noun[] = nouns(
  "person",
  `father 爸爸 位 -
  mother 妈妈 位 -
  older_brother 哥哥 个 -
  younger_brother 弟弟 个 -
  older_sister 姐姐 个 -
  younger_sister 妹妹 个 -
  son 儿子 个 -
  daughter 女儿 个 -
  grandmother 奶奶 位 -
  grandfather 爷爷 位 -
  uncle 叔叔 位 -`,
);

/** Animals. */
export const ANIMALS: readonly Noun[] = nouns(
  "animal",
  `cat 猫 只 pet
  dog 狗 只 pet
  bird 鸟 只 pet
  rabbit 兔子 只 pet
  horse 马 匹 ridable,farm
  cow 牛 头 farm
  pig 猪 头 farm
  duck 鸭子 只 farm`,
);

/**
 * Things. Groups: goods (bought, sold), text (read), writing (written, sent), food (eaten), clothes (worn 穿), headwear
 * (worn 戴), small (lost, found, put), machine (repaired), vehicle (driven), ridable, opening (opened, closed), fragile
 * (broken), drawable, furniture, room (cleaned), film, song, instrument.
 */
export const THINGS: readonly Noun[] = nouns(
  "thing",
  `book 书 本 goods,text,small
  novel 小说 本 goods,text,writing
  magazine 杂志 本 goods,text,small
  dictionary 词典 本 goods,text,small
  newspaper 报纸 份 goods,text,small
  letter 信 封 text,writing,mail
  email 邮件 封 text,writing,mail
  report 报告 份 text,writing
  poem 诗 首 text,writing
  apple 苹果 个 goods,food
  banana 香蕉 根 goods,food
  orange 橙子 个 goods,food
  egg 鸡蛋 个 goods,food
  cake 蛋糕 块 goods,food
  cookie 饼干 块 goods,food
  shirt 衬衫 件 goods,clothes,colored
  coat 大衣 件 goods,clothes,colored
  sweater 毛衣 件 goods,clothes,colored
  skirt 裙子 条 goods,clothes,colored
  hat 帽子 顶 goods,headwear,colored,small
  watch 手表 块 goods,headwear,small,machine
  pen 钢笔 支 goods,small,colored
  pencil 铅笔 支 goods,small,colored
  umbrella 雨伞 把 goods,small,colored
  key 钥匙 把 small
  knife 刀 把 goods,small knives
  ticket 票 张 goods,small
  map 地图 张 goods,small,drawable
  photo 照片 张 small
  bag 包 个 goods,small,colored
  gift 礼物 件 goods,mail,small
  toy 玩具 个 goods,small
  cup 杯子 个 goods,fragile,small
  bottle 瓶子 个 fragile,small
  window 窗户 扇 opening,fragile
  mirror 镜子 面 goods,fragile
  door 门 扇 opening
  box 盒子 个 opening,small
  computer 电脑 台 goods,machine
  phone 手机 部 goods,machine,small
  camera 相机 台 goods,machine,small
  car 汽车 辆 goods,machine,vehicle,colored
  bicycle 自行车 辆 goods,machine,ridable,colored
  table 桌子 张 goods,furniture
  chair 椅子 把 goods,furniture
  lamp 灯 盏 goods,furniture
  flower 花 朵 goods,drawable,colored
  tree 树 棵 drawable
  house 房子 座 drawable,home
  room 房间 个 room
  film 电影 部 film
  song 歌 首 song,writing`,
);

/** Food and drink that are not counted: English, Chinese, container words, group. */
export const SUBSTANCES: readonly {
  en: string;
  zh: string;
  container: [string, string, string];
  drink: boolean;
}[] = rows(
  `tea 茶 cup cups 杯
  coffee 咖啡 cup cups 杯
  water 水 glass glasses 杯
  milk 牛奶 glass glasses 杯
  juice 果汁 bottle bottles 瓶
  beer 啤酒 bottle bottles 瓶
  rice 米饭 bowl bowls 碗
  soup 汤 bowl bowls 碗
  bread 面包 piece pieces 片
  meat 肉 piece pieces 块`,
).map(([en = "", zh = "", one = "", many = "", measure = ""], i) => ({
  en,
  zh,
  container: [one, many, measure],
  drink: i < 6 || en === "soup",
}));

/** Names of people; titles follow the name in Chinese. */
export const NAMES: readonly (readonly [string, string])[] = rows(
  `Tom 汤姆
  Mary 玛丽
  John 约翰
  Anna 安娜
  Peter 彼得
  Lucy 露西
  David 大卫
  Alice 爱丽丝
  Jack 杰克
  Emma 艾玛
  Mike 迈克
  Helen 海伦
  Li_Ming 李明
  Wang_Fang 王芳
  Mr._Zhang 张先生
  Mrs._Chen 陈太太
  Miss_Liu 刘小姐
  Professor_Zhao 赵教授`,
).map(([en = "", zh = ""]) => [en, zh] as const);

/** Cities. */
export const CITIES: readonly (readonly [string, string])[] = rows(
  `Beijing 北京
  Shanghai 上海
  London 伦敦
  Paris 巴黎
  Tokyo 东京
  New_York 纽约
  Berlin 柏林
  Moscow 莫斯科`,
).map(([en = "", zh = ""]) => [en, zh] as const);

/** Places with "the". */
export const PLACES: readonly (readonly [string, string])[] = rows(
  `library 图书馆
  park 公园
  school 学校
  hospital 医院
  restaurant 餐厅
  supermarket 超市
  office 办公室
  museum 博物馆
  station 车站
  airport 机场
  bank 银行
  hotel 酒店
  bookstore 书店
  market 市场
  university 大学
  kitchen 厨房
  garden 花园
  classroom 教室
  factory 工厂
  zoo 动物园`,
).map(([en = "", zh = ""]) => [en, zh] as const);

/** Where things lie: English phrase, Chinese place with its locative word. */
export const SPOTS: readonly (readonly [string, string])[] = rows(
  `on_the_table 桌子上
  on_the_bed 床上
  on_the_chair 椅子上
  on_the_desk 书桌上
  on_the_floor 地上
  under_the_table 桌子下面
  under_the_bed 床下面
  under_the_tree 树下面
  in_the_box 盒子里
  in_the_bag 包里
  in_the_room 房间里
  in_the_car 汽车里
  in_the_garden 花园里
  in_the_kitchen 厨房里
  behind_the_door 门后面
  behind_the_house 房子后面
  in_front_of_the_school 学校前面
  next_to_the_window 窗户旁边`,
).map(([en = "", zh = ""]) => [en, zh] as const);

/** Transitive verbs: forms, Chinese, noun groups, flags. */
export const TRANSITIVES: readonly Transitive[] = rows(
  `buy buys bought bought buying 买 goods,goods,edible,drink -
  sell sells sold sold selling 卖 goods -
  read reads read read reading 读 text -
  write writes wrote written writing 写 writing -
  eat eats ate eaten eating 吃 food,edible -
  drink drinks drank drunk drinking 喝 drink -
  wash washes washed washed washing 洗 clothes,vehicle,fragile -
  repair repairs repaired repaired repairing 修理 machine skill
  drive drives drove driven driving 开 vehicle skill
  ride rides rode ridden riding 骑 ridable skill
  draw draws drew drawn drawing 画 drawable,pet skill
  sing sings sang sung singing 唱 song skill
  watch watches watched watched watching 看 film -
  clean cleans cleaned cleaned cleaning 打扫 room -
  use uses used used using 用 machine,knife -
  feed feeds fed fed feeding 喂 pet,farm -
  help helps helped helped helping 帮助 human -
  visit visits visited visited visiting 拜访 human -
  invite invites invited invited inviting 邀请 human -
  look_for looks_for looked_for looked_for looking_for 找 small,human -
  wait_for waits_for waited_for waited_for waiting_for 等 human -
  meet meets met met meeting 遇见 human event
  see sees saw seen seeing 看见 human,animal,small,vehicle event
  find finds found found finding 找到 small event
  lose loses lost lost losing 弄丢 small event
  borrow borrows borrowed borrowed borrowing 借 text,machine -
  receive receives received received receiving 收到 mail event
  send sends sent sent sending 寄 mail -
  like likes liked liked liking 喜欢 human,animal,goods,film,song,edible,drink stative
  want wants wanted wanted wanting 想要 goods,pet stative
  need needs needed needed needing 需要 goods,edible,drink stative
  know knows knew known knowing 认识 human stative`,
).map(([base = "", third = "", past = "", participle = "", ing = "", zh = "", takes = "", flags = ""]) => ({
  base,
  third,
  past,
  participle,
  ing,
  zh,
  takes: takes.split(","),
  flags: flags.split(","),
}));

/** Activities: forms, the rest in English, Chinese verb, Chinese object, flags. */
export const ACTIVITIES: readonly Activity[] = rows(
  `swim swims swam swum swimming - 游 泳 skill
  run runs ran run running - 跑 步 -
  sleep sleeps slept slept sleeping - 睡 觉 -
  dance dances danced danced dancing - 跳 舞 skill
  work works worked worked working - 工作 - -
  rest rests rested rested resting - 休息 - -
  play plays played played playing football 踢 足球 skill
  play plays played played playing basketball 打 篮球 skill
  play plays played played playing tennis 打 网球 skill
  play plays played played playing the_piano 弹 钢琴 skill
  play plays played played playing the_guitar 弹 吉他 skill
  listen listens listened listened listening to_music 听 音乐 -
  watch watches watched watched watching television 看 电视 -
  study studies studied studied studying English 学 英语 -
  study studies studied studied studying Chinese 学 中文 -
  study studies studied studied studying mathematics 学 数学 -
  speak speaks spoke spoken speaking French 说 法语 skill
  speak speaks spoke spoken speaking Japanese 说 日语 skill
  speak speaks spoke spoken speaking Chinese 说 中文 skill
  cook cooks cooked cooked cooking dinner 做 晚饭 skill`,
).map((
  [base = "", third = "", past = "", participle = "", ing = "", tail = "", zh = "", object = "", flags = ""],
) => ({
  base,
  third,
  past,
  participle,
  ing,
  tail,
  zh,
  object,
  flags: flags.split(","),
}));

function comparison(en: string, comparative: string): [string, string] {
  if (comparative === "more") return [`more ${en}`, `most ${en}`];
  return [comparative, comparative.replace(/er$/, "est")];
}

/**
 * Adjectives: English, comparative ("more": with more and most), Chinese before a noun, Chinese as a predicate, and what
 * they describe: noun kinds and groups, and "person*" for a predicate only.
 */
export const ADJECTIVES: readonly Adjective[] = rows(
  `big bigger 大 大 animal,food,clothes,furniture,bag,box,home,room
  small smaller 小 小 animal,food,clothes,furniture,bag,box,home,room
  new newer 新 新 clothes,headwear,machine,furniture,home,film,book,dictionary,bag,umbrella,toy
  expensive more 昂贵的 贵 clothes,headwear,machine,furniture,home,bag,gift,dictionary
  cheap cheaper 便宜的 便宜 clothes,headwear,machine,furniture,pen,umbrella,dictionary,cup
  heavy heavier 重的 重 table,chair,bag,box,bicycle,mirror
  beautiful more 漂亮的 漂亮 clothes,home,flower,furniture,pet
  interesting more 有意思的 有意思 text,film
  fast faster 快的 快 vehicle,ridable
  dirty dirtier 脏的 脏 clothes,room,fragile
  fresh fresher 新鲜的 新鲜 food
  delicious more 好吃的 好吃 food
  cute cuter 可爱的 可爱 pet
  young younger 年轻的 年轻 person
  tall taller 高的 高 person*
  kind kinder 善良的 善良 person
  clever cleverer 聪明的 聪明 person
  famous more 有名的 有名 person
  rich richer 有钱的 有钱 person
  strong stronger 强壮的 强壮 person,farm
  busy busier 忙的 忙 person*
  tired more 累的 累 person*
  happy happier 高兴的 高兴 person*
  angry angrier 生气的 生气 person*
  hungry hungrier 饿的 饿 person*`,
).map(([en = "", more = "", attributive = "", predicate = "", groups = ""]) => {
  const [comparative, superlative] = comparison(en, more);
  return { en, comparative, superlative, attributive, predicate, groups: groups.split(",") };
});

/** Colours: English, Chinese before a noun; as a predicate 是…色的. */
export const COLORS: readonly (readonly [string, string])[] = rows(
  `red 红
  blue 蓝
  black 黑
  white 白
  green 绿
  yellow 黄`,
).map(([en = "", zh = ""]) => [en, zh] as const);
